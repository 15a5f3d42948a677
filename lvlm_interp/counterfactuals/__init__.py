"""What the model would say of other pictures, or of none."""

from lvlm_interp.counterfactuals.pictures import (
    NAMED,
    Counterfactual,
    applied,
    black_box,
    blank,
    blur,
    crop,
    dropped,
    hidden,
    named,
    noise,
    swap,
)

__all__ = [
    "NAMED",
    "Counterfactual",
    "applied",
    "black_box",
    "blank",
    "blur",
    "crop",
    "dropped",
    "hidden",
    "named",
    "noise",
    "swap",
]
