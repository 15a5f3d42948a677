"""An answer is written while other streams, that see less, read it along.

The no-image stream is CAL's (Xiao et al. 2024): image tokens keep their places and are seen by nobody. How distances
fade along an answer: Favero et al. 2024 (M3ID).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.counterfactuals.counterfactual import Counterfactual
from lvlm_interp.engine.lockstep import Stream, lockstep
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.generation.choosing import Choosing, Greedy, Step
from lvlm_interp.generation.streams import named_all, streams_of
from lvlm_interp.generation.traced import Trace, compared
from lvlm_interp.generation.watched import need_watchable, watched
from lvlm_interp.given import explained, need_seed, whole
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.training import need_evaluation
from lvlm_interp.model.vlm import HookedVLM

Seen = Callable[[str], object]


@explained
@in_one_go
@torch.no_grad()
def trace(
    vlm: HookedVLM,
    x: Inputs,
    without: str | Counterfactual | Sequence[str | Counterfactual] = "hidden",
    *,
    max_new_tokens: int = 128,
    choosing: Choosing | None = None,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    inside: bool = False,
    sites: str | Sequence[str] = (),
    each: Seen | None = None,
    progress: bool = False,
) -> Trace:
    """Write the answer to a prompt, and watch what each token owes to the image.

    Args:
        vlm: the model.
        x: a prompt with an image; an answer that it has is ignored.
        without: what the other streams go without: one of `lvlm_interp.counterfactuals`, its name, or several.
        max_new_tokens: at most; the end of the turn is not counted.
        choosing: which token is written, from the distributions of all streams (`lvlm_interp.generation`); the
            likeliest by default.
        stop: texts at which the answer ends; they are left out of it.
        seed: of what is drawn, in counterfactuals and in choosing.
        inside: tell where each token looked, what heads made of the image, and what layers knew (`Trace.inside`), at
            the price of a pass over the finished answer for each stream.
        sites: names or globs whose values are kept for each token (`Trace.inside.captured`).
        each: is called with the text so far, after every token.
        progress: show a progress bar.

    Raises:
        InputError: no image, a counterfactual that is not known or stands twice, no tokens to write, or what is inside
            cannot be told.
        SiteError: a site that is not there.
        ModelError: the model gives NaN or infinity; or it writes what stands for a picture, where every token is
            computed from all positions anew.
    """
    x.need_image()
    need_seed(seed)
    need_evaluation(vlm.model)
    most, ends = whole(max_new_tokens), [stop] if isinstance(stop, str) else list(stop)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1 or not all(ends):
        raise InputError(f"max_new_tokens is 1 or more, and stop= no empty text; got {max_new_tokens!r}, {stop!r}")
    prompt = x.prompt
    chosen = named_all(without)
    writer = choosing or Greedy()
    streams = streams_of(vlm, prompt, chosen, seed)
    wanted = need_watchable(vlm, streams, [sites] if isinstance(sites, str) else sites) if inside or sites else []
    ids, steps, finished = _written(vlm, streams, writer, most, ends, seed, each, progress)
    seen = {name: torch.stack([step[name] for step in steps], -1).cpu() for name in steps[0]} if steps else None
    found = _none(streams) if seen is None else seen
    names = tuple(one.name for one in chosen)
    told: dict[str, Any] = {"without": [*names], "choosing": writer.described, "stop": ends}
    return Trace(
        answer=_cut(vlm.text_of(ids), ends),
        tokens=vlm.token_strings(ids),
        ids=torch.tensor(ids, dtype=torch.long),
        finished=finished,
        streams=names,
        inside=watched(vlm, streams, names, torch.tensor(ids), wanted) if ids and (inside or sites) else None,
        **{name: numbers if name == "rank" else numbers.float() for name, numbers in found.items()},
        provenance=vlm.provenance("trace", prompt, seed=seed, max_new_tokens=most, **told),
    )


def _written(
    vlm: HookedVLM,
    streams: Sequence[Stream],
    choosing: Choosing,
    most: int,
    ends: Sequence[str],
    seed: int,
    each: Seen | None,
    progress: bool,
) -> tuple[list[int], list[dict[str, Tensor]], bool]:
    """The ids, what was seen of each, and whether the answer ended by itself."""
    ids, steps = list[int](), list[dict[str, Tensor]]()
    generator = torch.Generator().manual_seed(int(seed))
    running = lockstep(vlm, streams, most, choosing.layers_of(vlm.depth))
    stops, states = {*vlm.stops()}, running.begin()
    with tqdm(total=most, desc="tokens", disable=not progress, leave=False) as bar:
        while True:
            logits = _finite(vlm, vlm.readout.logits(states).float())
            layers = {n: vlm.readout(state).float() for n, state in running.behind.items()}
            token = choosing.choose(Step(logits, ids, layers), generator)
            if token in stops or len(ids) == most:
                return ids, steps, token in stops
            ids.append(token)
            steps.append(compared(logits, token))
            bar.update()
            written = vlm.text_of(ids)
            if each is not None:
                each(_cut(written, ends))
            if any(end in written for end in ends):
                return ids, steps, True
            states = running.step(token)


def _finite(vlm: HookedVLM, logits: Float[Tensor, "stream vocabulary"]) -> Float[Tensor, "stream vocabulary"]:
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise ModelError(f"{vlm.name!r} gives NaN or infinity for this example: li.score says where they begin")
    return logits


def _none(streams: Sequence[Stream]) -> dict[str, Tensor]:
    """What was seen of an answer without tokens."""
    one = compared(torch.zeros(len(streams), 1), 0)
    return {name: number[..., None][..., :0] for name, number in one.items()}


def _cut(text: str, ends: Sequence[str]) -> str:
    """The text before the first of these."""
    return text[: min((text.index(end) for end in ends if end in text), default=len(text))].strip()
