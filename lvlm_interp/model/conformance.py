"""Five checks that a model is read truly. They run on any model that a user brings.

| check | what holds |
|---|---|
| parity | a captured run gives the same logits as the plain model: exactly under the same kernel, else to float error |
| leak | with the image hidden, other pixels change nothing; seen, they do |
| positions | under every coalition, what is seen stands where it stood: as one masked pass over all rows |
| sites | every site fires, values and patterns give the heads, heads `hook_attn_out`, the last layer the logits |
| restore | afterwards outputs, weights, attention implementations and hooks are what they were |
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lvlm_interp.errors import InputError, LvlmInterpError, ModelError, SiteError
from lvlm_interp.model.attention import implementation, implementations
from lvlm_interp.model.capture import masking, skipping
from lvlm_interp.model.decoder import decoder_inputs
from lvlm_interp.model.families import Family
from lvlm_interp.model.inputs import Inputs, Role
from lvlm_interp.model.rounding import HALF, Allowed, allowed, apart, float_error, kept, visited
from lvlm_interp.model.score import score
from lvlm_interp.model.sites import Site, reads_z
from lvlm_interp.model.weights import all_fetched
from lvlm_interp.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from lvlm_interp.model.vlm import HookedVLM

VISIBLE_CHANGE = 1e-3  # logits by which other pixels must change an answer that sees them


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

    check: str
    ok: bool
    measured: float
    limit: float
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Conformance(Result):
    """The checks of one model, one row each."""

    model_type: str
    checks: tuple[Checked, ...]

    @property
    def ok(self) -> bool:
        """Whether all checks hold."""
        return all(row.ok for row in self.checks)

    def __getitem__(self, name: str) -> Checked:
        found = next((row for row in self.checks if row.check == name), None)
        if found is None:
            raise KeyError(f"no check {name!r}; there are {[row.check for row in self.checks]}")
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row a check."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.checks])

    def _repr_html_(self) -> str:
        return self.to_frame().style.format({"measured": "{:.1e}", "limit": "{:.1e}"}, escape="html").to_html()

    def need(self) -> None:
        """Raise unless all checks hold.

        Raises:
            ModelError: names the first check that failed, what was measured and what to do.
        """
        failed = [row for row in self.checks if not row.ok]
        if failed:
            first = failed[0]
            raise ModelError(
                f"a model of type {self.model_type!r} cannot be read truly: the {first.check} check measured "
                f"{first.measured:.1e} (limit {first.limit:.1e}; {first.detail}). {first.advice} "
                f"Failed: {[row.check for row in failed]}; check(vlm, x) prints them all."
            )


@torch.no_grad()
def check(vlm: HookedVLM, x: Inputs | None = None) -> Conformance:
    """Run all checks.

    Args:
        vlm: the model.
        x: an example with an image; made with the processor if there is one.

    Raises:
        InputError: no example was given and none can be made, or the model itself refuses it.
    """
    x = _example(vlm) if x is None else x
    x.need_image()
    x = x if x.answer_start < x.length else _with_some_answer(vlm, x)
    rows = tuple(_carried_out(name, function, vlm, x) for name, function in CHECKS.items())
    return Conformance(vlm.model.config.model_type, rows, provenance=vlm.provenance("conformance"))


def _example(vlm: HookedVLM) -> Inputs:
    if vlm.processor is None:
        raise InputError(
            "an example is needed, and without a processor none can be made: wrap(model, processor), or "
            "check(vlm, vlm.inputs(input_ids=…, answer_start=…, pixel_values=…))"
        )
    from PIL import Image

    colors = torch.randint(0, 256, (96, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return vlm.prepare("What is in the image?", Image.fromarray(colors.numpy()), answer="A cat.")


def _with_some_answer(vlm: HookedVLM, x: Inputs) -> Inputs:
    ids = x.input_ids[0, ~vlm.visual_in(x.model_inputs)[0]].tolist()[:-4:-1]
    return x.with_answer(ids, vlm.token_strings(ids), "")


def _carried_out(name: str, function: Callable[..., Checked], vlm: HookedVLM, x: Inputs) -> Checked:
    """A check that breaks off has failed, with what broke it as its detail."""
    try:
        return function(vlm, x)
    except InputError:  # the example's fault, and no check's: image tokens that do not match the image
        raise
    except (LvlmInterpError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        advice = "The check could not be carried out: this kind of model needs a row in model/families.py."
        return Checked(name, False, float("nan"), 0.0, f"{type(error).__name__}: {text}", advice)


def _other_pixels(x: Inputs) -> Inputs:
    """The same example with noise for pixels."""
    return x.with_noise(0.0, torch.Generator().manual_seed(2026))


# --- the checks -----------------------------------------------------------------------------------


def parity(vlm: HookedVLM, x: Inputs) -> Checked:
    """A captured run gives the logits of the plain model."""
    with implementation(vlm.model, "eager"):
        exact = apart(vlm.run(x), _captured(vlm, x))
    plain = vlm.run(x)
    gap, rounding = _difference(vlm, x, plain)
    # The eager formulas of some towers round elsewhere than ours, which shows in half precision only.
    ok = exact <= (rounding.limit if vlm.model.dtype in HALF else 0) and gap <= rounding.limit
    under = f"{exact:.1e} under eager (0 expected), {gap:.1e} under its own kernel"
    detail = f"captured against plain logits: {under}{rounding.note}"
    advice = "Captures would not show what the model does. Is attention or its mask built outside AttentionInterface?"
    return Checked("parity", ok, max(exact, gap), rounding.limit, detail, "" if ok else advice)


def _difference(vlm: HookedVLM, x: Inputs, plain: Tensor) -> tuple[float, Allowed]:
    """How far a captured run is from the plain model, and how far it may be.

    What is captured goes by the eager formula. In half precision transformers' own kernels may be further apart than
    any limit that still finds faults; where rounding explains it, there it is enough to be near to one of them.
    """
    captured = _captured(vlm, x)
    gap = apart(plain, captured)
    rounding = allowed(vlm, lambda: vlm.run(x), plain, gap)
    if vlm.model.dtype in HALF and gap <= rounding.explained:
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
        [_scored(vlm, y, y.hidden(*r)) for r in (["image"], [])] for y in (x, other)
    )
    gap, control = apart(hidden, hidden_other), apart(seen, seen_other)
    ok = gap == 0 and control > VISIBLE_CHANGE
    detail = f"other pixels change the answer's logits by {gap:.1e} hidden (0 expected) and by {control:.1e} seen"
    advice = (
        "The image reaches the answer past the mask; the family needs another way to hide it."
        if gap
        else "Other pixels make no difference at all: is the image used? (untrained gates, pixels that are dropped)"
    )
    return Checked("leak", ok, gap, 0.0, detail, "" if ok else advice)


def _scored(vlm: HookedVLM, x: Inputs, visible: Bool[Tensor, " position"]) -> Tensor:
    return score(vlm, x, visible[None]).logits(0)


def positions(vlm: HookedVLM, x: Inputs) -> Checked:
    """What is seen stands where it stood: the engine against one masked pass over all rows."""
    coalitions = [x.hidden("image"), x.hidden("question") | x.where("template"), x.hidden("image", "question")]
    other, given = _with_some_answer(vlm, x), decoder_inputs(vlm, x)  # what goes by token must follow another answer
    gaps, roundings = [], []
    for y, visible in [*((x, visible) for visible in coalitions), (other, other.hidden("image"))]:
        slowly = _masked(vlm, y, visible)
        expected = slowly()
        gaps.append(apart(score(vlm, y, visible[None], given=given).logits(0), expected))
        roundings.append(allowed(vlm, slowly, expected, gaps[-1]))
    gap = float(torch.tensor(gaps).max())  # NaN, if one is
    limit, note = max((rounding.limit, rounding.note) for rounding in roundings)
    ok = gap <= limit
    cases = f"{len(coalitions)} coalitions, 2 answers"
    detail = f"rows dropped and packed against one masked pass, {cases}: {gap:.1e}{note}"
    advice = "Position ids move when something is hidden, or the decoder takes arguments by row that are not cut."
    return Checked("positions", ok, gap, limit, detail, "" if ok else advice)


def masked_pass(vlm: HookedVLM, x: Inputs, visible: Bool[Tensor, " position"]) -> Float[Tensor, "answer vocabulary"]:
    """The slow way: the plain model computes every row, at its own positions, under its own masks less what is hidden.

    An image that no token carries is hidden by leaving out its inputs, or by shutting its gates. Layers that hand a
    state from position to position, or are told of padding only, pass over what is hidden.
    """
    return _masked(vlm, x, visible)()


def _masked(vlm: HookedVLM, x: Inputs, visible: Bool[Tensor, " position"]) -> Callable[[], Tensor]:
    """The slow way, ready to be run: the masks are those of the model's own kernel, under whichever one it runs."""
    sight, own = decoder_inputs(vlm, x, room=0).sight, torch.eye(x.length, dtype=torch.bool)
    lowest = torch.finfo(vlm.model.dtype).min
    masks = {}
    for kind in sight.kinds:
        see = kind.see & visible | own
        mask = torch.zeros(1, 1, *see.shape, dtype=vlm.model.dtype).masked_fill_(~see, lowest).to(vlm.device)
        masks.update(dict.fromkeys(kind.modules, mask))
    family = vlm.family if not (visible & x.where("image")).any() else Family()
    left = {k: v for k, v in x.model_inputs.items() if k not in family.image_inputs}
    given = {k: torch.zeros_like(v) if k in family.gates else v for k, v in left.items()}

    @torch.no_grad()
    def run() -> Tensor:
        with masking(masks), skipping((*vlm.recurrent, *sight.unmasked), visible):
            return vlm.call(given)[0, x.answer_positions - 1]

    return run


def sites(vlm: HookedVLM, x: Inputs) -> Checked:
    """Every site fires, heads recombine, values and patterns give them, the last layer's lens is the logits."""
    found = vlm.capture(x, "*")
    zs = [site for name, site in vlm.sites.items() if name.endswith("attn.hook_z")]
    recombined = [gap for site in zs if (gap := _recombined(vlm, site, found)) is not None]
    read = [gap for site in zs if (gap := _read(site, found)) is not None]
    last = max((n for n in vlm.sites if n.startswith("blocks.") and n.endswith("resid_post")), key=_number)
    lens = apart(vlm.readout(found[last]), found["logits"])
    gap, limit = float(torch.tensor([lens, *recombined, *read]).max()), float_error(vlm, found["logits"])
    missing = f"; {len(vlm.missing)} sites cannot be read ({next(iter(vlm.missing.values()))})" if vlm.missing else ""
    heads = f"heads recombine in {len(recombined)} layers, values give them in {len(read)}"
    detail = f"{len(vlm.sites)} sites fired; {heads}; lens {lens:.1e}{missing}"
    ok = gap <= limit
    advice = "The names of the parts in model/parts.py do not fit this model."
    return Checked("sites", ok, gap, limit, detail, "" if ok else advice)


def _number(name: str) -> int:
    return int(name.split(".")[1])


def _recombined(vlm: HookedVLM, site: Site, found: Any) -> float | None:
    """How far the heads of one layer, projected, are from what attention puts out, relative to its size."""
    projection = reads_z(site)
    block = site.name.rsplit(".", 2)[0]
    out = vlm.sites.get(f"{block}.hook_attn_out")
    if projection is None or out is None:
        return None
    heads, added = projection(found[site.name].flatten(-2)), found[out.name]
    if not _inside(site.module, out.module):  # a norm stands between attention and the residual stream
        heads = out.module(heads)
    heads = out.scaled(heads)
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


def restore(vlm: HookedVLM, x: Inputs) -> Checked:
    """Captures, edits that break off and scores leave nothing behind."""
    before, state = vlm.run(x), _state(vlm)

    def broken(value: Tensor) -> Tensor:
        raise InterruptedError

    with contextlib.suppress(SiteError):  # sites that do not fire are another check's
        vlm.capture(x, "blocks.*")
    with contextlib.suppress(InterruptedError):
        vlm.capture(x, "blocks.0.*", edits={"blocks.0.hook_resid_pre": broken})
    score(vlm, x, torch.stack([x.hidden(), x.hidden("image")]))
    gap, left = apart(before, vlm.run(x)), [k for k, v in _state(vlm).items() if state[k] != v]
    ok = gap == 0 and not left
    detail = f"outputs differ by {gap:.1e} afterwards" + (f"; changed: {', '.join(left)}" if left else "")
    return Checked("restore", ok, gap, 0.0, detail, "" if ok else "Something was left in the model: load it anew.")


def _state(vlm: HookedVLM) -> dict[str, Any]:
    """What of a model could be left changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    digest = type(vlm).fingerprint.func(vlm)  # type: ignore[attr-defined]  # computed anew, not the cached one
    return {
        "hooks": sum(len(getattr(m, name)) for m in vlm.model.modules() for name in hooks),
        "attention implementation": sorted(kernel for _, kernel in implementations(vlm.model).values()),
        "weights": digest,
    }


CHECKS: dict[str, Callable[[HookedVLM, Inputs], Checked]] = {
    "parity": parity,
    "leak": leak,
    "positions": positions,
    "sites": sites,
    "restore": restore,
}


# --- at load --------------------------------------------------------------------------------------


@torch.no_grad()
def check_at_load(vlm: HookedVLM) -> None:
    """What is cheap: weights are finite, the parts are found, a capture of a few words gives the plain logits.

    Raises:
        ModelError: what does not hold.
    """
    # A finite sum has finite terms, and is quick; the rest is looked at term by term.
    weights = all_fetched(vlm.model, [name for name, _ in vlm.model.named_parameters()])
    bad = [name for name, weight in weights if not weight.sum().isfinite() and not weight.isfinite().all()]
    if bad:
        raise ModelError(
            f"{len(bad)} weights of {vlm.name!r} hold NaN or infinity, {bad[0]!r} among them: load it anew"
        )
    if not any(name.startswith("blocks.") for name in vlm.sites):
        raise ModelError(f"no site was found in the decoder of {vlm.name!r} ({type(vlm.decoder).__name__})")
    words = _words(vlm)
    try:
        plain = vlm.run(words)
    except Exception:  # some models answer no prompt without an image (InstructBLIP): they are checked with one
        return
    gap, rounding = _difference(vlm, words, plain)
    if not gap <= rounding.limit:
        again = apart(plain, vlm.run(words))
        raise ModelError(
            f"{vlm.name!r} does not give the same logits twice: they differ by {again:.1e} in two plain runs. "
            "Models that draw something at random cannot be read."
            if again
            else f"capturing changes what {vlm.name!r} computes: its logits differ by {gap:.1e} "
            f"(limit {rounding.limit:.1e}{rounding.note}). "
            "Its attention does not go by transformers' AttentionInterface in the way that is read here."
        )


def _words(vlm: HookedVLM) -> Inputs:
    """A few words without an image."""
    ids = [i for i in range(3, 12) if i not in vlm.visual_token_ids][:4]
    tensor = torch.tensor([ids], device=vlm.device)
    roles: list[Role] = ["question"] * len(ids)
    return Inputs({"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}, tuple(roles), len(ids))
