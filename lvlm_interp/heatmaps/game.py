"""The value of every set of patches: what sampled methods ask for, many sets at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.occlusion import usual
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import Valued, values_of
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.heatmaps.regions import Regions, regions_of, spread


class Game:
    """v(S) of every part of the answer, where S are the regions of an image that are seen; the rest of the prompt is.

    What is in no region, a row's end for example, is always seen too. Alternatives are those that are found when it is
    made, under everything and nothing of the image, so that all sets are compared with the same.

    Attributes:
        players: how many regions there are.
        whole, nothing: v of all of them, and of none, `[part]`.
    """

    def __init__(self, asked: Asked, hide_from: HideFrom | None, regions: Regions) -> None:
        self.asked, self.hide_from = asked, hide_from or usual(asked)
        self._labels = regions_of(asked, regions)
        self.players = int(self._labels.max()) + 1
        members = [asked.patches[self._labels == player].any(0) for player in range(self.players)]
        self._members = torch.stack(members)
        # How its tokens are told from the image's decides what is kept: with `all` nothing of the prompt is shared.
        self._given = asked.decoder_inputs or run_to_decoder(asked.vlm, asked.x, keep_prompt=self.hide_from == "all")
        ends = torch.tensor([[True], [False]]).expand(2, self.players)
        self._target = asked.target
        valued = self._valued(ends)
        self._compared = asked.compared(valued)
        self.whole, self.nothing = valued.numbers[0].unbind(1)
        if self._target.compares:
            self._target = self._holding(valued)

    def __call__(self, seen: Bool[Tensor, "set player"]) -> Float[Tensor, "part set"]:
        """v of several sets."""
        return self._valued(seen).numbers[0]

    def _valued(self, seen: Bool[Tensor, "set player"]) -> Valued:
        # A token may show two regions (a thumbnail's): it is hidden with either.
        hidden = (~seen).float() @ self._members.float() > 0
        options: dict[str, Any] = {"hide_from": self.hide_from, "decoder_inputs": self._given}
        return values_of(self.asked.vlm, self.asked.x, ~hidden, self._target, **options)

    def _holding(self, valued: Valued) -> Any:
        """The same target, compared with what was found."""
        search = dataclasses.replace(
            self._target.search,
            given=dict(enumerate(valued.alternatives)),
            ids=dict(enumerate(valued.alternative_ids)),
            written=True,
        )
        return dataclasses.replace(self._target, search=search)

    def bar(self, total: int) -> Any:
        """A progress bar over sets."""
        return tqdm(total=total, desc="sets of patches", disable=not self.asked.progress, leave=False)

    def mapped(
        self,
        method: str,
        values: Float[Tensor, "part player"],
        parameters: dict[str, Any],
        error: Float[Tensor, "part player"] | None = None,
        **about: Any,
    ) -> PatchMap:
        """The map of what each region was found to be worth; `about` are more of its fields."""
        grid = self.asked.cells.shape
        if error is not None:
            about["error"] = spread(error, self._labels).float().reshape(-1, *grid)
        return self.asked.mapped(
            method,
            spread(values, self._labels),
            self.whole - self.nothing,
            {**parameters, "hide_from": self.hide_from, "regions": self.players},
            hide_from=self.hide_from,
            **self._compared,
            **about,
        )
