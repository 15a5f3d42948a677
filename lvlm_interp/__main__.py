"""`python -m lvlm_interp` is the command line."""

from lvlm_interp.cli import main

if __name__ == "__main__":
    main()
