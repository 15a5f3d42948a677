"""`python -m lvlm_interp` is the command line."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.pop(0)  # where the user happens to be: a torch.py that lies there is not torch

from lvlm_interp.cli import main

if __name__ == "__main__":
    main()
