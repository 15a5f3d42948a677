"""Fuyu, which has no vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.families.shared.cases import PATCH, of_tiny
from tests.families.shared.tiny import Tiny, text

TINY = {
    "fuyu": Tiny(
        {"model_type": "fuyu", "text_config": text("persimmon"), "patch_size": 14, "hidden_size": 32},
        {"image_patches": (1, 4, 588)},
        tokens=4,
    ),
}


def cutting_fuyu() -> type:
    """It cuts arrays only, and its family's processor hands it tensors."""
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

    class Cutting(FuyuImageProcessorPil):
        def patchify_image(self, image: Tensor, patch_size: Any = None) -> Tensor:
            return torch.as_tensor(super().patchify_image(np.asarray(image), patch_size))

    return Cutting


def pieces(processor: Any, given: list[Image.Image], made: Mapping[str, Any]) -> dict[str, Any]:
    """Fuyu's processor cuts what its image processor made into patches; before transformers 5.16, another part did."""
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
    from transformers.models.fuyu.processing_fuyu import FuyuProcessor

    if not hasattr(FuyuProcessor, "_process_images"):
        told = [torch.stack(list(made[f"image_unpadded_{side}"])).view(-1, 1) for side in ("heights", "widths")]
        shown = torch.stack([torch.as_tensor(one) for one in made["images"]]).view(len(given), 1, 3, 60, 80)
        own_cut = FuyuImageProcessorPil(**PAPER).preprocess_with_tokenizer_info
        cut = own_cut(shown, torch.ones(len(given), 1), *told, 1, 2, True)
        return {"image_patches": torch.cat([one for (one,) in cut["image_patches"]])}
    own = SimpleNamespace(image_processor=processor, replace_image_token=lambda *told, **more: "")
    made = FuyuProcessor._process_images(own, given, return_tensors="pt")[0]
    return {"image_patches": made["image_patches"]}


def in_pieces(model: nn.Module, made: Mapping[str, Tensor], pictures: int) -> list[Tensor]:
    """Features of patches in a row; the images are of one size."""
    return list(model.get_image_features(made["image_patches"]).last_hidden_state.chunk(pictures))


PAPER = {"size": {"height": 60, "width": 80}, "patch_size": {"height": PATCH, "width": PATCH}}

CASES = {
    "fuyu": of_tiny(TINY["fuyu"], cutting_fuyu, PAPER, features=in_pieces, finish=pieces),
}
