"""The answer while it is written: with the image and without it, in lockstep on the same tokens."""

from lvlm_interp.generation.choosing import Changing, Choosing, Greedy, Sampled, Step
from lvlm_interp.generation.contrasting import CONTRASTIVE, Contrastive
from lvlm_interp.generation.layered import DeCo, DoLa
from lvlm_interp.generation.named import DECODINGS, decoding
from lvlm_interp.generation.processing import ChangedLogits
from lvlm_interp.generation.trace import trace
from lvlm_interp.generation.traced import Trace
from lvlm_interp.generation.watched import Watched
from lvlm_interp.generation.yes_no import CONTROLS, Decodings, Way, compare_decodings

__all__ = [
    "CONTRASTIVE",
    "CONTROLS",
    "DECODINGS",
    "ChangedLogits",
    "Changing",
    "Choosing",
    "Contrastive",
    "DeCo",
    "Decodings",
    "DoLa",
    "Greedy",
    "Sampled",
    "Step",
    "Trace",
    "Watched",
    "Way",
    "compare_decodings",
    "decoding",
    "trace",
]
