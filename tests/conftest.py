"""What holds for every test: no network, no screen, and shapes and types checked at run time."""

import os

# Set before anything imports torch, transformers or matplotlib.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

# Every function and dataclass of the package is checked against its annotations, shapes included, while the
# tests run; users do not pay for it. With the "tower" an int passes for a float, as it does for a type checker.
# It must come before the first import of the package. Typeguard 4 cannot read jaxtyping's shapes; beartype can.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("lvlm_interp", CHECKER)

import torch

torch.set_num_threads(2)  # the same sums, in the same order, on any machine
