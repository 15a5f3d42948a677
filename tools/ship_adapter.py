"""Make what a training run left small, and put it where it ships: `python tools/ship_adapter.py RUN`.

Three files: the projector after the first stage; projector and LoRA after the second; and LoRA after the third, in
which the projector did not learn any more.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lvlm_interp.reference.adapters import small

REFERENCE = Path(__file__).resolve().parents[1] / "lvlm_interp" / "reference"
MOST = 24_000_000  # bytes of all weights that ship together


def main(run: Path) -> None:
    stages = {name: load_file(run / f"{name}.safetensors") for name in ("align", "tune", "adapter")}
    projector = [name for name in stages["tune"] if name.startswith("projector.")]
    if not all(torch.equal(stages["tune"][name], stages["adapter"][name]) for name in projector):
        raise SystemExit(f"{run}: the projector learnt in the last stage; its file must hold it too")
    kept = {
        "align": {name: stages["align"][name] for name in projector},
        "tune": stages["tune"],
        "drop": {name: value for name, value in stages["adapter"].items() if name not in projector},
    }
    for name, state in kept.items():
        save_file(small(state), REFERENCE / f"{name}.safetensors")
    size = sum(path.stat().st_size for path in REFERENCE.glob("*.safetensors"))
    print(f"{size / 1e6:.1f} MB of weights ship")
    if size > MOST:
        raise SystemExit(f"more than {MOST / 1e6:.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
