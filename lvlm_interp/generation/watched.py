"""What was inside a model while an answer was written: where it looked, what heads made of the image, what layers
knew.

All of it is read in one pass more for each stream, over the finished answer: a row that predicts a token sees what it
saw when that token was written. Of attention only the rows that are asked for are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.engine.lockstep import Stream
from lvlm_interp.engine.score import score_answers
from lvlm_interp.errors import InputError
from lvlm_interp.fields import ANY, POSITIVE, SHARE, Range
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.choice import axes_of, off_the_prompt
from lvlm_interp.model.sites import match
from lvlm_interp.model.taps import Reading
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result, html, shown_frame
from lvlm_interp.shown import table_html

PATTERN, HEADS, STREAM = ("blocks.{}." + name for name in ("attn.hook_pattern", "attn.hook_z", "hook_resid_post"))
SINKS = "sinks"
SINK = 5.0  # times the median token of the image; Kang et al. 2025 have sinks by their states


@dataclass(frozen=True)
class Watched(Result):
    """What was inside, for each token that was written: of the row that predicts it.

    Attributes:
        tokens: as text.
        groups: parts of what is looked at: roles of the prompt, `answer` so far, and `sinks`: the first position, and
            tokens of the image that all rows behind it look at more than 5 times as much as at the median one.
        attention: how much is looked at each group, the mean over heads, `[layer, group, step]`; over groups it adds up
            to 1, but for rounding. NaN in layers without attention.
        streams: what the other streams went without.
        vision_heads: how far a head's output is from that in the other stream, ‖z − z'‖, `[stream, layer, head, step]`
            (vision-aware head divergence: He et al. 2024). NaN where there is no such head.
        lens: the probability of the token that was written, read off the stream behind each block, `[layer, step]`.
        captured: what stood at the sites that were asked for, with everything seen, `[step, …]`.
    """

    along: ClassVar[Mapping[str, str]] = {"tokens": "step", "groups": "group", "streams": "stream"}
    ranges: ClassVar[Mapping[str, Range]] = {
        "attention": POSITIVE,
        "vision_heads": POSITIVE,
        "lens": SHARE,
        "captured": ANY,
    }
    blank: ClassVar[frozenset[str]] = frozenset({"attention", "vision_heads"})
    tokens: tuple[str, ...]
    groups: tuple[str, ...]
    attention: Float[Tensor, "layer group step"]
    streams: tuple[str, ...]
    vision_heads: Float[Tensor, "stream layer head step"]
    lens: Float[Tensor, "layer step"]
    captured: Mapping[str, Tensor]

    @property
    def note(self) -> str:
        return "attention in shares, lens in probabilities, heads by how far their outputs are apart"

    def to_frame(self) -> pd.DataFrame:
        """One row for each step and layer; of heads the mean, by what the other stream went without."""
        layers, steps = self.lens.shape
        index = pd.MultiIndex.from_product([range(steps), range(layers)])
        frame = index.to_frame(index=False, name=["step", "layer"])
        columns = {f"attention {name}": self.attention[:, n] for n, name in enumerate(self.groups)}
        heads = self.vision_heads.nanmean(2)
        columns |= {"lens": self.lens, **{f"heads {name}": heads[n] for n, name in enumerate(self.streams)}}
        told = {name: numbers.T.flatten().tolist() for name, numbers in columns.items()}
        return self.identified(frame.assign(token=[self.tokens[n] for n in frame["step"]], **told))


@html.register
def _as_html(result: Watched) -> str:
    return table_html(shown_frame(result), caption=result.note)


def need_watchable(vlm: HookedVLM, streams: Sequence[Stream], sites: Sequence[str]) -> list[str]:
    """The sites that are to be captured.

    Raises:
        InputError: what is inside cannot be seen in one pass, or a site without positions of the prompt.
        SiteError: a site that is not there.
    """
    if vlm.recurrent and not all(bool(stream.visible.all()) for stream in streams):
        raise InputError(
            f"{vlm.name!r} has layers that hand on a state, where hidden tokens are passed over: what is inside is "
            "told beside a stream with another picture, without='blank'"
        )
    found = list(dict.fromkeys(site.name for one in sites for site in match(vlm.sites, one, vlm.missing)))
    if off := [name for name in found if off_the_prompt(name)]:
        raise InputError(f"{off[0]!r} has positions of its own, and what is kept stands where tokens are predicted")
    return found


def watched(
    vlm: HookedVLM, streams: Sequence[Stream], names: Sequence[str], ids: Int[Tensor, " step"], sites: Sequence[str]
) -> Watched:
    """What was inside while these tokens were written; the first stream sees everything."""
    x = streams[0].x
    seen = _Pass(vlm, x, len(ids))
    seen.keep(STREAM, *sites)
    seen.look()
    passes = [seen, *(_Pass(vlm, stream.x, len(ids)) for stream in streams[1:])]
    for one, stream in zip(passes, streams, strict=True):
        one.keep(HEADS)
        one.run(stream, ids)
    groups, attention = seen.attention()
    return Watched(
        tokens=vlm.token_strings(ids.tolist()),
        groups=groups,
        attention=attention,
        streams=tuple(names),
        vision_heads=_apart(vlm, [one.rows for one in passes], len(ids)),
        lens=_lens(vlm, seen.rows, ids),
        captured={name: seen.rows[name].cpu() for name in sites},
        provenance=vlm.provenance("watched", x, without=[*names], sites=[*sites]),
    )


class _Pass:
    """One pass over an answer, and what is kept of it.

    Attributes:
        rows: by site, what stands where tokens are predicted, `[step, …]`.
        looked: by layer, the mean over heads of what rows behind the image look at, `[row, key]`.
    """

    def __init__(self, vlm: HookedVLM, x: Inputs, steps: int) -> None:
        self.vlm, self.x, self.steps = vlm, x, steps
        self.rows, self.looked = dict[str, Tensor](), dict[int, Tensor]()
        self._at = torch.arange(steps) + x.answer_start - 1
        first = min(int(x.where("image").nonzero()[-1]) + 1, x.answer_start - 1)  # a prompt may end with its image
        self._behind = torch.arange(first, x.answer_start - 1 + steps)
        self._visits: dict[str, Callable[[Tensor], Tensor]] = {}

    def keep(self, *names: str) -> None:
        """Sites, or what stands for one in each block where there is one."""
        for name in names:
            every = [name.format(n) for n in range(self.vlm.depth)] if "{}" in name else [name]
            there = [one for one in every if one in self.vlm.sites]
            self._visits |= {one: functools.partial(self._kept, one) for one in there}

    def look(self) -> None:
        """Where rows behind the image look."""
        for n in range(self.vlm.depth):
            if (name := PATTERN.format(n)) in self.vlm.sites:
                visits = functools.partial(self._whole, n), self._behind, functools.partial(self._looked, n)
                self._visits[name] = Reading(*visits)

    def run(self, stream: Stream, ids: Int[Tensor, " step"]) -> None:
        with self.vlm.visiting(self._visits):
            score_answers(self.vlm, stream.x, stream.visible[None, : stream.x.answer_start], [ids])

    def _kept(self, name: str, value: Tensor) -> Tensor:
        axis = axes_of(name)[0]
        self.rows[name] = value.index_select(axis, self._at.to(value.device)).movedim(axis, 1)[0]
        return value

    def _whole(self, layer: int, pattern: Tensor) -> Tensor:
        self._looked(layer, pattern[:, :, self._behind.to(pattern.device)])
        return pattern

    def _looked(self, layer: int, rows: Float[Tensor, "batch head row key"]) -> Tensor:
        self.looked[layer] = rows[0].float().mean(0).cpu()
        return rows

    def attention(self) -> tuple[tuple[str, ...], Float[Tensor, "layer group step"]]:
        """The groups, and how much each row looks at them."""
        own = {name: numbers[-self.steps :] for name, numbers in self.looked.items()}
        length = max((rows.shape[-1] for rows in own.values()), default=self.x.answer_start)
        groups = self._groups(length)
        found = torch.full((self.vlm.depth, len(groups), self.steps), torch.nan)
        for layer, rows in own.items():
            found[layer] = torch.stack([rows[:, of].sum(-1) for of in groups.values()])
        return tuple(groups), found

    def _groups(self, length: int) -> dict[str, Bool[Tensor, " key"]]:
        roles = [*self.x.roles[: self.x.answer_start], *["answer"] * (length - self.x.answer_start)]
        sinks = self._sinks(length)
        names = dict.fromkeys([*roles, "answer"])
        by_role = {name: torch.tensor([role == name for role in roles]) & ~sinks for name in names}
        return {**by_role, SINKS: sinks}

    def _sinks(self, length: int) -> Bool[Tensor, " key"]:
        image = torch.zeros(length, dtype=torch.bool)
        image[: self.x.answer_start] = self.x.where("image")[: self.x.answer_start]
        found = torch.arange(length) == 0
        if self.looked:
            paid = torch.stack([rows.mean(0) for rows in self.looked.values()]).mean(0)
            found |= image & (paid > SINK * paid[image].median())
        return found


def _apart(
    vlm: HookedVLM, passes: Sequence[Mapping[str, Tensor]], steps: int
) -> Float[Tensor, "stream layer head step"]:
    names = {n: HEADS.format(n) for n in range(vlm.depth)}
    there = {n: name for n, name in names.items() if name in passes[0]}
    heads = max((passes[0][name].shape[1] for name in there.values()), default=0)
    found = torch.full((len(passes) - 1, vlm.depth, heads, steps), torch.nan)
    for stream, other in enumerate(passes[1:]):
        for n, name in there.items():
            apart = (passes[0][name] - other[name]).float().norm(dim=-1).T.cpu()
            found[stream, n, : len(apart)] = apart
    return found


def _lens(vlm: HookedVLM, rows: Mapping[str, Tensor], ids: Int[Tensor, " step"]) -> Float[Tensor, "layer step"]:
    found = torch.full((vlm.depth, len(ids)), torch.nan)
    few = vlm.readout.rows_at_once
    for n in range(vlm.depth):
        for start in range(0, len(ids), few):
            logits = vlm.readout(rows[STREAM.format(n)][start : start + few]).float()
            own = ids[start : start + few].to(logits.device)
            found[n, start : start + few] = logits.softmax(-1).gather(-1, own[:, None])[:, 0].cpu()
    return found
