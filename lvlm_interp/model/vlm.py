"""`HookedVLM`: a transformers model with its processor, opened so that it can be seen inside."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from lvlm_interp.errors import InputError, ModelError, SiteError
from lvlm_interp.families.shared import registry
from lvlm_interp.given import explaining, whole
from lvlm_interp.inputs.batch import Batch
from lvlm_interp.inputs.called import named_by
from lvlm_interp.inputs.example import Answer, Inputs
from lvlm_interp.inputs.handmade import may_be_of_shapes, unfitting
from lvlm_interp.inputs.touched import states_of
from lvlm_interp.model.capture import Capture, Edit, recording
from lvlm_interp.model.choice import Choice, Positions, Reduction, choose, depths_of, in_layers
from lvlm_interp.model.compiled import uncompiled
from lvlm_interp.model.holding import Held, held, hooks_of_others, patched, within_hook_of_others
from lvlm_interp.model.hooks import passing, rescaling, takes_one, visiting
from lvlm_interp.model.identity import fingerprint
from lvlm_interp.model.lengths import following, forget, recounted
from lvlm_interp.model.preparing import Preparing
from lvlm_interp.model.quantised import need_gradients
from lvlm_interp.model.sites import Site, match
from lvlm_interp.model.training import need_evaluation
from lvlm_interp.model.walking import looked_up, named_modules, walking_once
from lvlm_interp.model.weights import need_one_type
from lvlm_interp.results import Provenance

# What is said where image tokens do not match the features; the last by torch, where transformers does not look.
UNMATCHED: dict[type, tuple[str, ...]] = {
    ValueError: ("match",),
    RuntimeError: ("shape mismatch", "Number of elements of source < number of ones in mask"),
}


@explaining
class HookedVLM(Preparing):
    """A vision-language model whose inside can be read. Made by `load` or `wrap`; the model itself is never changed.

    Attributes:
        model: the transformers model, in evaluation mode.
        processor: its processor, or None if it was wrapped without one.
        name: what it was loaded from.
        accepted: whether its family, with such a language model, is known to be read truly; another one is checked with
            its first image.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any = None,
        name: str | None = None,
        revision: str | None = None,
        first_check: Callable[[HookedVLM, Inputs], None] | None = None,
        tracer: Callable[[HookedVLM], Any] | None = None,
    ) -> None:
        super().__init__(model, processor)
        self.name, self.revision = name or type(model).__name__, revision
        self.accepted = registry.tried(model.config)
        self._first_check, self._tracer = first_check, tracer

    @property
    def fingerprint(self) -> str:
        """Tells models apart by weights and settings: all of them are read, see `identity.fingerprint`."""
        with self.held.using():  # a pass in another thread may fetch weights, and move them
            return fingerprint(self.model)

    @property
    def identity(self) -> str:
        """The same, quickly: see `known.Known` for what is looked at again."""
        return self.held.identity(self.model)

    @property
    def held(self) -> Held:
        """Who uses the model now: see `model.holding`."""
        return held(self.model)

    @property
    def active_edits(self) -> tuple[str, ...]:
        """What changes passes now: edited sites, hooks, forwards and methods of others, `torch.autocast`."""
        edited = (site.name for site, _ in self.held.edited)
        walked = looked_up(named_modules, self.model)
        hooks = [f"hook: {name}" for name in hooks_of_others(walked)] + [f"method: {name}" for name in patched(walked)]
        kind = self.device.type
        cast = [f"autocast: {torch.get_autocast_dtype(kind)}"] if torch.is_autocast_enabled(kind) else []
        return (*dict.fromkeys(edited), *hooks, *cast)

    def provenance(self, method: str, *examples: Inputs | Batch, seed: Any = None, **parameters: Any) -> Provenance:
        """Where a result of this model comes from, and of which example (or examples) it is."""
        dtype = str(self.dtype).removeprefix("torch.")
        of = named_by(*examples) if examples else None
        about = (method, parameters, self.revision, whole(seed), dtype, of, self.active_edits)
        return Provenance(self.name, self.identity, *about)

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f"HookedVLM({self.name!r}: {kind}, {self.depth} blocks, {self.dtype}, {self.device})"

    def _accepted(self, x: Inputs) -> Inputs:
        """The first image that a model of an unknown family is asked about is what it is checked with.

        Raises:
            ModelError: names the check that failed.
        """
        if self._first_check and not self.accepted and x.images:
            self._first_check(self, x)
            self.accepted = True
        return x

    @torch.no_grad()
    def generate(self, x: Inputs, max_new_tokens: int = 64) -> Answer:
        """The model's greedy answer to a prompt, without end-of-turn tokens; an answer that x has is ignored.

        Under edits, and hooks of others, every token is computed from all positions anew, since an edit by position
        would not find it among the few that a cache leaves to compute.
        """
        if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens is 1 or more, a whole number; got {max_new_tokens}")
        need_evaluation(self.model)
        self.notice_modules()
        self.blocks  # noqa: B018  that count themselves wrongly are refused: a cache would mix them up
        given = x.prompt_inputs()
        with self._called_with(given), passing(self.model, self.model, self.decoder), self._greedily():
            made = self.model.generate(
                **given,
                **({"use_cache": False} if (anew := bool(self.active_edits)) else {}),
                max_new_tokens=max_new_tokens,
                logits_processor=[self._only_numbers, *([self._no_picture] if anew else [])],
            )
        ids = made[0, x.answer_start :].tolist()
        kept = list(itertools.takewhile(lambda i: i not in self.stops(), ids))
        text = "".join(self.token_strings(kept))
        if self.processor is not None:
            text = self.prompter.tokenizer.decode(kept, skip_special_tokens=True)
        return Answer(text.strip(), kept, finished=len(kept) < len(ids))

    def _only_numbers(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The logits of the next token, which are the model's answer only where they are numbers."""
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise ModelError(f"{self.name!r} gives NaN or infinity for this example: li.score says where they begin")
        return logits

    def _no_picture(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The logits of the next token: behind one that stands for a picture, positions cannot be computed anew."""
        if (best := int(logits.argmax())) in self.visual_token_ids:
            raise ModelError(
                f"under these edits {self.name!r} writes {self.token_strings([best])[0]!r}, behind which it would look "
                "for a picture: its answer ends there. Give max_new_tokens= that stops before it, or a weaker edit"
            )
        return logits

    @contextlib.contextmanager
    def _greedily(self) -> Iterator[None]:
        """Within the `with` the likeliest token is taken each time: settings that change this are not the model's."""
        own = self.model.generation_config
        ends = {f"{name}_token_id": getattr(own, f"{name}_token_id") for name in ("bos", "decoder_start")}
        self.model.generation_config = GenerationConfig(
            **ends, eos_token_id=self.stops(), pad_token_id=self.stops()[0], do_sample=False, num_beams=1
        )
        try:
            yield
        finally:
            self.model.generation_config = own

    @torch.no_grad()
    def run(self, x: Inputs | Batch) -> Float[Tensor, "batch position vocabulary"]:
        """The plain model's logits, with nothing hooked; a compiled model computes them as it is written."""
        return self.call(x.model_inputs)

    def call(self, model_inputs: Mapping[str, Any]) -> Float[Tensor, "batch position vocabulary"]:
        """The model's logits.

        Raises:
            InputError: no inputs, or image tokens in the prompt that do not match the features of the image.
            MisfitError: shapes and kinds of numbers with which the model cannot be run.
            ModelError: the model, or a part of it, was put in training mode; its weights are of several types, which
                it cannot be run with.
        """
        need_evaluation(self.model)
        if not model_inputs:
            raise InputError("a model is called with the model inputs of an example, x.model_inputs; got none")
        within = passing(self.model, self.model, self.decoder)
        with self._called_with(model_inputs), within, uncompiled(self.model), rescaling(self._recounted(model_inputs)):
            forget(looked_up(following, self.decoder))
            return self.model(**_graphed(model_inputs), use_cache=False).logits

    @contextlib.contextmanager
    def _called_with(self, model_inputs: Mapping[str, Any]) -> Iterator[None]:
        """Within the `with` the model runs: an error of inputs that do not fit it names them.

        Errors of edits and of hooks of others stay what they are.
        """
        try:
            yield
        except Exception as error:
            if not may_be_of_shapes(error) or within_hook_of_others(error):
                raise
            if any(text in str(error) for text in UNMATCHED.get(type(error), ())):
                count = int(self.visual_in(model_inputs).sum())
                own = "it" if self.processor is None else self.prompter.settings
                raise InputError(
                    f"the prompt has {count} image tokens, and the image gives another number of features "
                    f"({error}). Was the prompt cut, or made for another image? Prepare it with its own "
                    f"processor. If that made it, {own} is not what belongs to this model: see processor_config.json."
                ) from error
            if self.active_edits:  # what they gave may be at fault
                raise
            need_one_type(self.model, error)
            beyond = isinstance(error, IndexError) and self.embedding_rows > 0
            known = f", which knows the ids up to {self.embedding_rows - 1}," if beyond else ""
            raise unfitting(model_inputs, f"{self.name!r}{known} cannot be run", error) from error

    def _recounted(self, model_inputs: Mapping[str, Any]) -> dict[nn.Module, Tensor]:
        """What layers that count rows are told behind padding, which a row of a batch may begin with."""
        mask = model_inputs.get("attention_mask")
        if self.family.tempered is None or not isinstance(mask, Tensor) or mask.ndim != 2:
            return {}
        places = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return recounted(self.family, itertools.chain(*self.attention_kinds), places)

    @functools.cached_property
    def nnsight(self) -> Any:
        """The same weights under nnsight: `with vlm.nnsight.trace(**x.model_inputs): …`; see `adapters.nnsight`."""
        if self._tracer is None:
            raise ModelError("this model was made without nnsight: open it with load() or wrap()")
        return self._tracer(self)

    @contextlib.contextmanager
    def visiting(self, visits: Mapping[Site, Edit] | Mapping[str, Edit] | Mapping[Site | str, Edit]) -> Iterator[None]:
        """Within the `with`, each site's value passes through its visit, which returns the value to go on with.

        Whatever runs there runs so, `score` and all that it carries included: then rows stand where they stand, one
        coalition a pass, so that row p of what an edit is given is position p. Other threads are refused meanwhile.

        Args:
            visits: site, name or glob → function of its whole value.

        Raises:
            SiteError: a name matches nothing, two visits of one site, a visit that returns no tensor of the value's
                shape; on leaving without another error, a site that did not fire.
        """
        edits = self._edits(visits)
        with self.held.editing(edits, open_to_user=True), visiting(self.model, edits, self.held.whose()):
            yield

    def _edits(self, edits: Mapping[Any, Edit]) -> dict[Site, Edit]:
        """Edits by site."""
        found: dict[Site, Edit] = {}
        for name, edit in edits.items():
            if not callable(edit):
                raise SiteError(f"an edit of {name!r} is a function of its whole value; got {edit!r}")
            if not takes_one(edit):
                raise SiteError(
                    f"an edit of {name!r} is called with its value alone, and {edit!r} takes something else: a hook of "
                    "TransformerLens is given as lambda value: hook(value, None)"
                )
            changed = [name] if isinstance(name, Site) else match(self.sites, name, self.missing)
            if twice := [site.name for site in changed if site in found]:
                raise SiteError(f"{name!r} means {twice[0]!r}, which another edit means too; give it one")
            found.update(dict.fromkeys(changed, edit))
        return found

    @walking_once
    def capture(
        self,
        x: Inputs | Batch,
        sites: str | Iterable[str],
        *,
        positions: Positions | None = None,
        layers: int | Iterable[int] | None = None,
        heads: int | Iterable[int] | None = None,
        reduce: Reduction | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        grad: bool = False,
        edits: Mapping[str, Edit] | None = None,
    ) -> Capture:
        """One forward pass; returns the activations at the sites, and holds nothing else of them in memory.

        Only blocks whose attention function is read at a site compute attention step by step; the rest stay on the
        model's own kernel.

        Args:
            x: what to run.
            sites: names or globs (`blocks.*.hook_resid_post`); `vlm.sites` lists all.
            positions: which positions of the prompt are kept: roles (`"answer"`), indices, or a bool mask; the rows, of
                patterns, of which then only these are computed. The logits too are those of these positions.
            layers: of the sites, those in these blocks only; negative numbers count from the last.
            heads: which heads are kept, along the site's own axis: in grouped-query attention k and v have fewer.
            reduce: `"mean"` over the (chosen) positions, or the `"last"` of them; that axis goes away. Padding, where
                `attention_mask` is 0, is left out.
            dtype: what is kept is converted to this type, or the type of this name; a mean is computed in it.
            device: where what is kept goes.
            grad: keep the graph. The logits can then be differentiated with respect to what is kept (as long as it is
                not reduced or converted), also inside `torch.no_grad()` and where all weights are frozen.
            edits: site name or glob → function of its whole value, which is replaced by what the function returns.

        Returns:
            site name → tensor `[batch, position, …]`, patterns `[batch, head, row, key]`; see `model.sites`. The logits
            of the same pass are under `logits`, never reduced.

        Raises:
            SiteError: a name matches nothing, a site did not fire or was written over, a layer or head that is not
                there, positions or heads asked of a site that has none to choose among, two edits of one site, or an
                edit that returns no tensor of the value's shape.
            InputError: positions out of range, an unknown reduction or type of numbers, or image tokens that do not
                match the image.
            VisibilityError: an unknown role.
            ModelError: gradients of a quantised model whose layers hand none on, or of one made in inference mode.
        """
        chosen = match(self.sites, sites, self.missing)
        if layers is not None:
            chosen = in_layers(chosen, depths_of(self.sites.values()), layers)
        with torch.inference_mode(False):  # numbers of positions become a part of the graph
            choice = choose(x, chosen, positions, heads, reduce, dtype, device, grad)
        changes = self._edits(edits or {})
        if grad:
            need_gradients(self.model, self.dtype)
        with (
            self.held.editing(changes),
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            recording(self.model, chosen, choice, changes) as found,
        ):
            edited = self.active_edits
            origin = self._origin(x, choice, [site.name for site in chosen], edited)
            logits = choice.of_logits(self.call(x.model_inputs))
            if self.active_edits != edited:
                raise SiteError("an edit put on hooks, or took some off, during the pass: they are no part of a result")
        return Capture({**found, "logits": logits}, choice, origin)

    def _origin(
        self, x: Inputs | Batch, choice: Choice, sites: list[str], edited: tuple[str, ...]
    ) -> Callable[[], Provenance]:
        """Where a capture comes from, looked up when it is asked for: of the model as it was before the pass."""
        kept: dict[str, Any] = {
            k: v.tolist() if isinstance(v, Tensor) else str(v) if isinstance(v, torch.dtype | torch.device) else v
            for k, v in vars(choice).items()
            if v is not None
        }
        before = self.held.known.changes(self.model)
        written = states_of(x.model_inputs)

        def provenance() -> Provenance:
            with self.held.using():
                return looked_at()

        def looked_at() -> Provenance:
            if states_of(x.model_inputs) != written:
                raise InputError(
                    "the example's tensors were written to since this capture began, and what they were then is not "
                    "known: ask for a capture's provenance, or save it, before"
                )
            if self.held.known.changes(self.model, anew=True) != before:
                raise ModelError(
                    "the model was changed since this capture began, and what it was then is not known: ask for a "
                    "capture's provenance, or save it, before"
                )
            return dataclasses.replace(self.provenance("capture", x, sites=sites, **kept), edits=edited)

        return provenance


def _graphed(model_inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a graph can be built on: tensors of inference mode are copied, where there is to be one."""
    keep = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return {k: v.clone() if keep and isinstance(v, Tensor) and v.is_inference() else v for k, v in model_inputs.items()}
