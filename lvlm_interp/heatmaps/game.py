"""The value of every set of patches: what sampled methods ask for, many sets at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.attribution.asked import Asked
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.attribution.value import Valued
from lvlm_interp.engine.score import HideFrom
from lvlm_interp.heatmaps.filling import TOKENS, Substrate
from lvlm_interp.heatmaps.hiding import hiding_of, named
from lvlm_interp.heatmaps.method import Kind, Method
from lvlm_interp.heatmaps.regions import Regions, regions_of, spread


class Game:
    """v(S) of every part of the answer, where S are the regions of an image that are seen; the rest of the prompt is.

    What is in no region, a row's end for example, is always seen too. Alternatives are those that are found when it is
    made, under everything and nothing of the image, so that all sets are compared with the same.

    Attributes:
        players: how many regions there are.
        members: the patches of each.
        target: what is explained, compared with what was found.
        valued: all of them, and none, and what was found to compare with.
        whole, nothing: v of all of them, and of none, `[part]`.
    """

    def __init__(
        self, asked: Asked, regions: Regions = None, substrate: Substrate = TOKENS, hide_from: HideFrom | None = None
    ) -> None:
        self.asked, self.hiding = asked, hiding_of(asked, substrate, hide_from)
        self._labels = regions_of(asked, regions)
        self.players = int(self._labels.max()) + 1
        self.members = torch.stack([self._labels == player for player in range(self.players)])
        ends = torch.tensor([[True], [False]]).expand(2, self.players)
        self.target = asked.target
        self.valued = self._values(ends)
        self.target = self.valued.held(asked.target)
        self.whole, self.nothing = self.valued.numbers[0].unbind(1)

    def __call__(self, seen: Bool[Tensor, "set player"]) -> Float[Tensor, "part set"]:
        """v of several sets."""
        return self._values(seen).numbers[0]

    def each(self, sets: Bool[Tensor, "set player"]) -> Float[Tensor, "part set"]:
        """v of many sets, with a progress bar; one that comes twice is scored once."""
        once, where = sets.unique(dim=0, return_inverse=True)
        values = []
        with self.bar(len(once)) as bar:
            for some in once.split(self.hiding.at_once):
                values.append(self(some))
                bar.update(len(some))
        return torch.cat(values, 1)[:, where]

    def _values(self, seen: Bool[Tensor, "set player"]) -> Valued:
        return self.hiding.valued((~seen).float() @ self.members.float() > 0, self.target)

    @property
    def _each_alone(self) -> bool:
        """Whether every patch is a region by itself."""
        return torch.equal(self._labels, torch.arange(self.asked.cells.numel()))

    @property
    def _told(self) -> dict[str, Any]:
        return {
            "regions": self.players,
            "labels": None if self._each_alone else named(self._labels.numpy()),
            "substrate": self.hiding.substrate,
            "picture": self.hiding.picture,
            "hide_from": self.hiding.hide_from,
        }

    def bar(self, total: int) -> Any:
        """A progress bar over sets."""
        return tqdm(total=total, desc="sets of patches", disable=not self.asked.progress, leave=False)

    def on_the_grid(self, values: Float[Tensor, "part player"]) -> Float[Tensor, "part row column"]:
        """Numbers of players, where their patches are."""
        return spread(values, self._labels).reshape(-1, *self.asked.cells.shape)

    def mapped(
        self,
        method: str,
        values: Float[Tensor, "part player"],
        parameters: dict[str, Any],
        error: Float[Tensor, "part player"] | None = None,
        **about: Any,
    ) -> PatchMap:
        """The map of what each region was found to be worth; `about` are more of its fields."""
        if error is not None:
            about["error"] = self.on_the_grid(error).float()
        return self.asked.mapped(
            method,
            spread(values, self._labels),
            self.whole - self.nothing,
            {**parameters, **self._told},
            hide_from=self.hiding.hide_from,
            **self.asked.compared(self.valued),
            **about,
        )


@dataclass(frozen=True)
class OverSets(Method):
    """A method that looks at sets of patches or regions.

    Attributes:
        regions: what is seen or hidden together (`heatmaps.regions`); every patch by default.
        substrate: what stands in the place of a patch that is not seen (`heatmaps.filling`).
        hide_from: of tokens. `text`: image tokens go on seeing the hidden one; `all`: nobody sees it. By default
            `text`, or `all` where only that is possible.
    """

    kind: ClassVar[Kind] = "counterfactual"
    regions: Regions = None
    substrate: Substrate = TOKENS
    hide_from: HideFrom | None = None

    def game(self, asked: Asked) -> Game:
        """The value of every set of what is asked."""
        return Game(asked, self.regions, self.substrate, self.hide_from)
