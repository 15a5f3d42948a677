"""BLIP-2 and InstructBLIP: tokens that answer the queries of a Q-Former."""

from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import Names

READS_QUESTION = "the Q-Former reads the question too, so image tokens carry some of it"
FAMILIES = {
    "blip-2": Family(prompt="{question}", whole=True),
    "instructblip": Family(prompt="{question}", whole=True, note=READS_QUESTION),
    "instructblipvideo": Family(prompt="{question}", image_token="video_token_index", whole=True, note=READS_QUESTION),
}
NAMES = Names(projector=("language_projection",))
