"""The answer while it is written: with the image and without it, in lockstep on the same tokens."""

from lvlm_interp.generation.choosing import Changing, Choosing, Greedy, Sampled, Step
from lvlm_interp.generation.contrasting import CONTRASTIVE, Contrastive
from lvlm_interp.generation.layered import DeCo, DoLa
from lvlm_interp.generation.processing import ChangedLogits
from lvlm_interp.generation.trace import trace
from lvlm_interp.generation.traced import Trace
from lvlm_interp.generation.watched import Watched

__all__ = [
    "CONTRASTIVE",
    "ChangedLogits",
    "Changing",
    "Choosing",
    "Contrastive",
    "DeCo",
    "DoLa",
    "Greedy",
    "Sampled",
    "Step",
    "Trace",
    "Watched",
    "trace",
]
