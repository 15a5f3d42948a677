"""What holds of a model that is read truly: one function a check.

| check | what holds |
|---|---|
| parity | a captured run gives the same logits as the plain model: exactly under the same kernel, else to rounding |
| leak | with the image hidden, other pixels change nothing; seen, they do |
| positions | under every coalition, what is seen stands where it stood: as one masked pass over all rows |
| sites | every site fires; values and patterns give the heads, heads what attention puts out, the last layer the \
logits; what is added to the stream is what it gains |
| batch | a row of a batch is its example: the same logits, the same stream |
| restore | afterwards outputs, weights, attention implementations and hooks are what they were |
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import score
from lvlm_interp.errors import SiteError
from lvlm_interp.fields import Range
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.attention import implementation, implementations
from lvlm_interp.model.capture import recording
from lvlm_interp.model.choice import Choice
from lvlm_interp.model.quantised import ADVICE, mixing
from lvlm_interp.model.sites import Site, reads_z
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.opening.additions import gaps
from lvlm_interp.opening.masked import masked
from lvlm_interp.opening.rounding import MOST, Allowed, allowed, apart, coarse, float_error, halves, kept, size, visited
from lvlm_interp.storing import storable

VISIBLE_CHANGE = 1e-3  # logits by which other pixels must change an answer that sees them


@storable
@dataclass(frozen=True)
class Checked:
    """What one check found.

    Attributes:
        check: its name.
        ok: whether it holds.
        measured: the largest difference that should not be there; NaN if the check could not be carried out.
        limit: what it may be.
        detail: what was measured.
        advice: what to do where it does not hold.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"measured": (0, math.inf), "limit": (0, math.inf)}
    blank: ClassVar[frozenset[str]] = frozenset({"measured", "limit"})
    check: str
    ok: bool
    measured: float
    limit: float
    detail: str
    advice: str = ""


def with_some_answer(vlm: HookedVLM, x: Inputs) -> Inputs:
    ids = x.input_ids[0, ~vlm.visual_in(x.model_inputs)[0]].tolist()[:-4:-1]
    return x.with_answer(ids, vlm.token_strings(ids), "")


def _other_pixels(x: Inputs) -> Inputs:
    """The same example with noise for pixels."""
    return x.with_noise(0.0, torch.Generator().manual_seed(2026))


def parity(vlm: HookedVLM, x: Inputs) -> Checked:
    """A captured run gives the logits of the plain model."""
    with implementation(vlm.model, "eager"):
        exact = apart(vlm.run(x), _captured(vlm, x))
    plain = vlm.run(x)
    gap, rounding = difference(vlm, x, plain)
    # The eager formulas of some towers round elsewhere than ours, which shows in half precision only.
    ok = exact <= (rounding.limit if halves(vlm) else 0) and gap <= rounding.limit
    under = f"{exact:.1e} under eager (0 expected), {gap:.1e} under its own kernel"
    detail = f"captured against plain logits: {under}{rounding.note}"
    advice = "Captures would not show what the model does. Is attention or its mask built outside AttentionInterface?"
    return Checked("parity", ok, max(exact, gap), rounding.limit, detail, "" if ok else advice)


def difference(vlm: HookedVLM, x: Inputs, plain: Tensor) -> tuple[float, Allowed]:
    """How far a captured run is from the plain model, and how far it may be.

    What is captured goes by the eager formula. In half precision transformers' own kernels may be further apart than
    any limit that still finds faults; where rounding explains it, there it is enough to be near to one of them.
    """
    captured = _captured(vlm, x)
    gap = apart(plain, captured)
    rounding = allowed(vlm, lambda: vlm.run(x), plain, gap)
    if coarse(vlm) and gap <= rounding.explained:
        with implementation(vlm.model, "eager"):
            gap = min(gap, apart(vlm.run(x), captured))
    return gap, rounding


def _captured(vlm: HookedVLM, x: Inputs) -> Tensor:
    """Logits of a run in which every site is recorded; sites that do not fire are another check's."""
    return visited(vlm, lambda: vlm.run(x), kept)


def leak(vlm: HookedVLM, x: Inputs) -> Checked:
    """Behind the mask other pixels change nothing; without it they do."""
    other = _other_pixels(x)
    (hidden, seen), (hidden_other, seen_other) = (
        [_scored(vlm, y, visible) for visible in (y.hidden("image"), y.everything)] for y in (x, other)
    )
    gap, control = apart(hidden, hidden_other), apart(seen, seen_other)
    ok, mixed = gap == 0 and control > VISIBLE_CHANGE, mixing(vlm.decoder, vlm.dtype)
    detail = f"other pixels change the answer's logits by {gap:.1e} hidden (0 expected) and by {control:.1e} seen"
    advice = (
        (mixed and f"{mixed} computes a row by what stands beside it, hidden or not. {ADVICE}.")
        or "The image reaches the answer past the mask; the family needs another way to hide it."
        if gap
        else "Other pixels make no difference at all: is the image used? (untrained gates, pixels that are dropped)"
    )
    return Checked("leak", ok, gap, 0.0, detail, "" if ok else advice)


def _scored(vlm: HookedVLM, x: Inputs, visible: Bool[Tensor, " position"]) -> Tensor:
    return score(vlm, x, visible[None]).logits(0)


def positions(vlm: HookedVLM, x: Inputs) -> Checked:
    """What is seen stands where it stood: the engine against one masked pass over all rows."""
    coalitions = [x.hidden("image"), x.hidden("question") | x.where("template"), x.hidden("image", "question")]
    other = with_some_answer(vlm, x)  # what goes by token must follow another answer
    decoder_inputs = run_to_decoder(vlm, x)
    gaps, roundings = [], []
    for y, visible in [*((x, visible) for visible in coalitions), (other, other.hidden("image"))]:
        slowly = masked(vlm, y, visible)
        expected = slowly()
        gaps.append(apart(score(vlm, y, visible[None], decoder_inputs=decoder_inputs).logits(0), expected))
        roundings.append(allowed(vlm, slowly, expected, gaps[-1]))
    gap = float(torch.tensor(gaps, dtype=torch.float64).max())  # NaN, if one is
    limit = max(rounding.limit for rounding in roundings)
    note = max(roundings, key=lambda rounding: (rounding.note != "", rounding.limit)).note
    ok = gap <= limit
    cases = f"{len(coalitions)} coalitions, 2 answers"
    detail = f"rows dropped and packed against one masked pass, {cases}: {gap:.1e}{note}"
    advice = "Position ids move when something is hidden, or the decoder takes arguments by row that are not cut."
    return Checked("positions", ok, gap, limit, detail, "" if ok else advice)


def sites(vlm: HookedVLM, x: Inputs) -> Checked:
    """Every site fires, heads recombine, values and patterns give them, parts add up, the last lens is the logits."""
    zs = [site for name, site in vlm.sites.items() if name.endswith("attn.hook_z")]
    # What attention, or the norm behind it, gives in the same pass, before it is multiplied by something and added.
    outs = [dataclasses.replace(out, read="output") for site in zs if (out := _out_of(vlm, site))]
    with recording(vlm.model, outs, Choice(x.length)) as given:
        found = vlm.capture(x, "*")
    recombined = [gap for site in zs if (gap := _recombined(vlm, site, found, given)) is not None]
    read = [gap for site in zs if (gap := _read(site, found)) is not None]
    sums = gaps(vlm, x, found)
    last = max(filter(_ends_block, vlm.sites), key=_number)
    lens = apart(vlm.readout(found[last]), found["logits"])
    measured, limit = [lens, *recombined, *read, *sums.values()], float_error(vlm, found["logits"])
    gap = float(torch.tensor(measured, dtype=torch.float64).max())
    missing = f"; {len(vlm.missing)} sites cannot be read ({next(iter(vlm.missing.values()))})" if vlm.missing else ""
    heads = f"heads recombine in {len(recombined)} layers, values give them in {len(read)}"
    missed = [name for name, one in sums.items() if not one <= limit]
    added = f"{missed[0]} is not what was added up" if missed else f"{len(sums)} sums of the stream hold"
    detail = f"{len(vlm.sites)} sites fired; {heads}; {added}; lens {lens:.1e}{missing}"
    ok = gap <= limit
    advice = "The names of the parts in model/parts.py do not fit this model."
    return Checked("sites", ok, gap, limit, detail, "" if ok else advice)


def _number(name: str) -> int:
    return int(name.split(".")[1])


def _out_of(vlm: HookedVLM, site: Site) -> Site | None:
    """What attention adds, where a site holds its heads."""
    return vlm.sites.get(f"{site.name.rsplit('.', 2)[0]}.hook_attn_out")


def _recombined(vlm: HookedVLM, site: Site, found: Any, given: Mapping[str, Tensor]) -> float | None:
    """How far the heads of one layer, projected, are from what attention puts out, relative to its size."""
    projection, out = reads_z(site), _out_of(vlm, site)
    if projection is None or out is None:
        return None
    heads, added = projection(found[site.name].flatten(-2)), given[out.name]
    if not _inside(site.module, out.module):  # a norm stands between attention and the residual stream
        heads = out.module(heads)
    return apart(heads.reshape(added.shape), added) / max(1.0, float(added.abs().max()))


def _read(site: Site, found: Any) -> float | None:
    """How far the values of one layer, weighted by its pattern, are from z; None where something stands between."""
    v, pattern, z = (found.get(site.name.replace("hook_z", f"hook_{name}")) for name in ("v", "pattern", "z"))
    if v is None or pattern is None or site.read == "input":  # a gate stands between
        return None
    values = v.reshape(len(pattern), -1, *v.shape[-2:]).repeat_interleave(pattern.shape[1] // v.shape[-2], 2)
    read = torch.einsum("bhqk,bkhi->bqhi", pattern, values).reshape(z.shape)
    return apart(read, z) / max(1.0, float(z.abs().max()))


def _inside(inner: nn.Module, outer: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def batch(vlm: HookedVLM, x: Inputs) -> Checked:
    """Each row of a batch is its example: the same prompt with other pixels and a longer answer stands beside it."""
    other = _other_pixels(x)
    ids = [*x.answer_ids.tolist(), *x.answer_ids.tolist()]
    both = (x, other.with_answer(ids, vlm.token_strings(ids), ""))
    if why := vlm.not_side_by_side([one.length for one in both]):
        return Checked("batch", True, 0.0, 0.0, f"one by one: {why}")
    together, name = vlm.batch(both), max(filter(_ends_block, vlm.sites), key=_number)
    found = vlm.capture(together, name)
    rows = []
    for number, one in enumerate(both):
        for what, value in vlm.capture(one, name).items():  # the stream, and the logits
            gap = apart(together.of(number, found[what]), value)
            limit, note, rounds = _allowed_in_a_batch(vlm, one, name, what, value, gap)
            rows.append((gap / limit if math.isfinite(gap) else math.inf, gap, limit, note, rounds))
    share, gap, limit, note, rounds = max(rows)
    advice = (
        ROUNDS
        if rounds
        else "A row gets something of another: vlm.batch is not to be used. A row in lvlm_interp/families can say so."
    )
    detail = f"two rows against their examples alone: {gap:.1e}{note}"
    return Checked("batch", share <= 1, gap, limit, detail, "" if share <= 1 else advice)


def _allowed_in_a_batch(
    vlm: HookedVLM, x: Inputs, name: str, what: str, alone: Tensor, gap: float
) -> tuple[float, str, bool]:
    """What rounding may make of a gap, how it was measured, and whether it explains the gap.

    It is measured at last by the same example beside itself, which products of another size round in another way, and
    which nothing of another example can reach.
    """
    rounding = allowed(vlm, lambda: vlm.capture(x, name)[what], alone, gap)
    if gap <= rounding.limit:
        return rounding.limit, rounding.note, True
    twice = vlm.batch((x, x))
    beside = apart(twice.of(0, vlm.capture(twice, name)[what]), alone)
    limit = max(rounding.limit, min(2 * beside, MOST * size(alone)))
    return limit, f"{rounding.note}; the same example twice, {beside:.1e}", gap <= rounding.explained


def _ends_block(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith("resid_post")


def restore(vlm: HookedVLM, x: Inputs) -> Checked:
    """Captures, edits that break off and scores leave nothing behind."""
    before, state = vlm.run(x), _state(vlm)

    def broken(value: Tensor) -> Tensor:
        raise InterruptedError

    with contextlib.suppress(SiteError):  # sites that do not fire are another check's
        vlm.capture(x, "blocks.*")
    with contextlib.suppress(InterruptedError):
        vlm.capture(x, "blocks.0.*", edits={"blocks.0.hook_resid_pre": broken})
    score(vlm, x, torch.stack([x.everything, x.hidden("image")]))
    gap, left = apart(before, vlm.run(x)), [k for k, v in _state(vlm).items() if state[k] != v]
    ok = gap == 0 and not left
    detail = f"outputs differ by {gap:.1e} afterwards" + (f"; changed: {', '.join(left)}" if left else "")
    return Checked("restore", ok, gap, 0.0, detail, "" if ok else "Something was left in the model: load it anew.")


def _state(vlm: HookedVLM) -> dict[str, Any]:
    """What of a model could be left changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "hooks": sum(len(getattr(m, name)) for m in vlm.model.modules() for name in hooks),
        "attention implementation": sorted(kernel for _, kernel in implementations(vlm.model).values()),
        "weights": vlm.fingerprint,
    }


MIXES = "A row gets something of another: vlm.batch is not to be used. A row in lvlm_interp/families can say so."
ROUNDS = (
    "Rounding explains it, and is more than results can stand: one unit in the last place, layer by layer, moves "
    "logits as far. Open the model in float32."
)
CHECKS: dict[str, Callable[[HookedVLM, Inputs], Checked]] = {
    "parity": parity,
    "leak": leak,
    "positions": positions,
    "sites": sites,
    "batch": batch,
    "restore": restore,
}
