"""Models whose images are codes of one vocabulary with words: Chameleon, Emu 3."""

from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import Names

CODES = "vocabulary_mapping.image_tokens"
FAMILIES = {
    "chameleon": Family(never=CODES, codes=CODES),
    "emu3": Family(codes=CODES, since="5.16"),  # before, transformers did not hand its pictures on to it
}
NAMES = Names(norms_moved=("Swin",))
