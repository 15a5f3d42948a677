"""Families of which transformers says all, but for how they cut pictures."""

from lvlm_interp.families.shared.cuts import merged, resized
from lvlm_interp.families.shared.family import STAGES, Family

AS_QWEN = ("dots3_note", "ernie4_5_vl_moe", "exaone4_5", "paddleocr_vl")
# Convolutions make tokens of more than a box (GOT-OCR 2, Step 3.7), or it has not been worked out.
UNKNOWN = ("got_ocr2", "perception_lm", "pp_chart2table", "step3p7")
FAMILIES = {
    **dict.fromkeys(AS_QWEN, Family(layout=resized, merge=merged)),
    **dict.fromkeys(UNKNOWN, Family()),
    "aria": Family(whole=True),  # resampled
    "fast_vlm": Family(note=STAGES),
}
