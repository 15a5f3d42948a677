"""`HookedVLM`: a transformers model with its processor, opened so that it can be seen inside."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lvlm_interp.errors import InputError, ModelError, SiteError
from lvlm_interp.model import families, prompt
from lvlm_interp.model.anatomy import Anatomy
from lvlm_interp.model.batch import Batch, batched
from lvlm_interp.model.capture import Capture, Edit, recording, visiting
from lvlm_interp.model.choice import Positions, Reduction, choose, depths_of, in_layers
from lvlm_interp.model.inputs import (
    VIDEO_PIXELS,
    Answer,
    ImageLike,
    Inputs,
    Role,
    Shown,
    VideoLike,
    open_image,
    open_video,
    pixels_of,
)
from lvlm_interp.model.sites import Site, match
from lvlm_interp.model.views import find_views, shown_in
from lvlm_interp.model.weights import all_fetched
from lvlm_interp.results import Provenance

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLED = 1024  # elements of each weight tensor that its fingerprint looks at
OPEN = {"image": open_image, "video": open_video}
"""What opens the parts of a message that are shown, by their type."""


class HookedVLM(Anatomy):
    """A vision-language model whose inside can be read. Made by `load` or `wrap`; the model itself is never changed.

    Attributes:
        model: the transformers model, in evaluation mode.
        processor: its processor, or None if it was wrapped without one.
        name: what it was loaded from.
        accepted: whether its family is known to be read truly; another one is checked with its first image.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any = None, name: str | None = None, revision: str | None = None
    ) -> None:
        super().__init__(model, processor)
        self.name, self.revision = name or type(model).__name__, revision
        self.accepted = families.known(model.config.model_type)

    @functools.cached_property
    def prompter(self) -> prompt.Prompter:
        if self.processor is None:
            raise ModelError(
                "this model was wrapped without a processor, which text and images need: "
                "wrap(model, processor), or use vlm.inputs(input_ids=…) for tensors that are processed already"
            )
        return prompt.Prompter(self.processor, self.family)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash over names, shapes and evenly spaced elements of all weights; cheap at any size."""
        digest = hashlib.sha256()
        for name, weight in all_fetched(self.model, sorted(self.model.state_dict())):
            flat = weight.detach().flatten()
            some = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu()
            digest.update(f"{name}{tuple(weight.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()[:16]

    def provenance(self, method: str, seed: int | None = None, **parameters: Any) -> Provenance:
        """Where a result of this model comes from."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return Provenance(self.name, self.fingerprint, method, parameters, self.revision, seed, dtype)

    def __repr__(self) -> str:
        blocks = sum(name.startswith("blocks.") and name.endswith("resid_post") for name in self.sites)
        kind = type(self.model).__name__
        return f"HookedVLM({self.name!r}: {kind}, {blocks} blocks, {self.model.dtype}, {self.device})"

    # --- inputs -----------------------------------------------------------------------------------

    def prepare(
        self,
        question: str,
        image: ImageLike | Sequence[ImageLike] | None = None,
        context: str | None = None,
        system: str | None = None,
        answer: str | None = None,
        video: VideoLike | None = None,
        fps: float | None = None,
    ) -> Inputs:
        """One question as model inputs, with the role of every position.

        Args:
            question: what is asked.
            image: a path or PIL image, or several; None asks without an image.
            context: text of the user before the question.
            system: a system message.
            answer: the answer to explain; an `Answer` from `generate` keeps its exact tokens.
            video: the frames of a video, behind the images if there are any; all of them are shown.
            fps: frames per second of these frames, for families that tell the model the time; None leaves it to the
                processor (24 in most).

        Raises:
            ImageError: the image, or a frame, cannot be read.
            InputError: an empty question, a text that tokenises to nothing, or a video where the family has none.
        """
        several = [image] if image is None or isinstance(image, ImageLike) else list(image)
        pictures = [open_image(one) for one in several if one is not None]
        clip = None if video is None else {"video": open_video(video), "fps": fps}
        return self._prepared(prompt.conversation(question, pictures, context, system, clip), answer)

    def prepare_chat(self, messages: Sequence[Mapping[str, Any]], answer: str | None = None) -> Inputs:
        """Chat messages (transformers' format, images as `{"type": "image", "image": …}`) as model inputs.

        Videos are `{"type": "video", "video": frames}`, with `"fps"` if it is known; all frames are shown. The last
        text is the question, system messages are system, everything said before is context.
        """
        opened = prompt.listed(messages)
        for message in opened:
            message["content"] = [
                {**part, kind: OPEN[kind](part[kind])} if (kind := str(part.get("type"))) in OPEN else part
                for part in message["content"]
            ]
        return self._prepared(opened, answer)

    def _prepared(self, messages: list[prompt.Message], answer: str | None) -> Inputs:
        encoded = self.prompter.encode(messages)
        shown = [_shown(part) for m in messages for part in m["content"] if part["type"] in OPEN]
        model_inputs = {k: v.to(self.device) for k, v in encoded.model_inputs.items() if isinstance(v, Tensor)}
        if self.family.cast:
            model_inputs |= {k: v.to(self.model.dtype) for k, v in pixels_of(model_inputs).items()}
        ids = model_inputs["input_ids"][0].tolist()
        roles: list[Role] = ["template"] * len(ids)
        texts: dict[str, str] = {}
        for segment, (start, stop) in zip(encoded.segments, encoded.spans, strict=True):
            roles[start:stop] = [segment.role] * (stop - start)
            texts[segment.role] = texts.get(segment.role, "") + segment.text
        views = find_views(self, model_inputs, shown)
        for position in (int(p) for view in views for p in view.positions):
            roles[position] = "image"
        x = Inputs(
            model_inputs, tuple(roles), len(ids), views, self.token_strings(ids), texts, self._fills(model_inputs)
        )
        self._accepted(x)
        if answer is None:
            return x
        if isinstance(answer, Answer):
            return self.answered(x, answer)
        return self._answered(x, self.prompter.answer_ids(messages, answer), answer)

    def inputs(
        self,
        input_ids: Tensor,
        answer_start: int | None = None,
        roles: Sequence[Role] | None = None,
        **model_inputs: Tensor,
    ) -> Inputs:
        """Tensors that are processed already; no processor is needed.

        Args:
            input_ids: `[1, T]`, the answer included.
            answer_start: first position of the answer; none by default.
            roles: T roles; by default image tokens are `image`, the answer is `answer`, special tokens and the position
                that predicts the first answer token are `template`, and the rest is `question`.
            model_inputs: the other arguments of the model (`pixel_values`, …).

        Raises:
            InputError: shapes that do not fit, image tokens without pixels, or a video where the model takes none.
        """
        start = input_ids.shape[-1] if answer_start is None else answer_start
        given = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **model_inputs}
        given = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        ids = input_ids[0].tolist()
        for name, fill in self._fills(given).items():
            if fill is not None:
                given[name] = torch.cat([given[name][:, :start], torch.full_like(given[name][:, start:], fill)], 1)
        self._need_video(given)
        views = find_views(self, given, shown_in(self, given))
        named = tuple(roles or self._plain_roles(ids, self.visual_in(given)[0].tolist(), start))
        return self._accepted(Inputs(given, named, start, views, self.token_strings(ids), {}, self._fills(given)))

    def _accepted(self, x: Inputs) -> Inputs:
        """The first image that a model of an unknown family is asked about is what it is checked with.

        Raises:
            ModelError: names the check that failed.
        """
        if not self.accepted and x.images:
            from lvlm_interp.model.conformance import check

            check(self, x).need()
            self.accepted = True
        return x

    def _fills(self, model_inputs: Mapping[str, Any]) -> dict[str, int | None]:
        return {k: v for k, v in self.family.fills.items() if k in model_inputs}

    def _plain_roles(self, ids: Sequence[int], visual: Sequence[bool], start: int) -> list[Role]:
        text = self.model.config.get_text_config()
        special = {getattr(text, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")}
        roles: list[Role] = [
            "image" if shown else "template" if i in special else "question"
            for i, shown in zip(ids[:start], visual[:start], strict=True)
        ]
        if roles and roles[-1] == "question":
            roles[-1] = "template"
        answer: list[Role] = ["answer"] * (len(ids) - start)
        return roles + answer

    def _need_video(self, model_inputs: Mapping[str, Any]) -> None:
        """Raise if there are pixels of a video, and the model takes none."""
        if VIDEO_PIXELS in model_inputs and VIDEO_PIXELS not in inspect.signature(self.model.forward).parameters:
            raise InputError(
                f"models of type {self.model.config.model_type!r} take no {VIDEO_PIXELS}: they read no videos, or "
                "their frames as images (pixel_values)"
            )

    def token_strings(self, ids: Iterable[int]) -> tuple[str, ...]:
        """What each token reads as behind other text, blank included; `<5>` for id 5 where there is no tokenizer."""
        if self.processor is None:
            return tuple(f"<{i}>" for i in ids)
        return tuple(self.prompter.read(i) for i in ids)

    def batch(self, examples: Sequence[Inputs]) -> Batch:
        """Examples side by side, padded on the left, for `run` and `capture`; each row computes what it does alone.

        Raises:
            InputError: no example, or examples of which only some have an image.
        """
        return batched(examples, self._stops()[0] if self.uncounted is None else self.uncounted)

    def with_pictures(self, x: Inputs, pictures: Sequence[Image | list[Image]]) -> Inputs:
        """The same example with other pictures of the same size in the place of its own; of a video, its frames."""
        processed = self.prompter.pixels(pictures)
        changed = {k: v.to(x.model_inputs[k]) for k, v in processed.items() if k in x.model_inputs}
        return x.with_model_inputs(**changed)

    # --- running ----------------------------------------------------------------------------------

    def answered(self, x: Inputs, answer: str) -> Inputs:
        """The same prompt with this answer (an `Answer` keeps its exact tokens)."""
        ids = answer.ids if isinstance(answer, Answer) else self.prompter.answer_ids((), answer)
        return self._answered(x, ids, answer)

    def _answered(self, x: Inputs, ids: Sequence[int], answer: str) -> Inputs:
        return x.with_answer(ids, self.token_strings(ids), str(answer))

    @torch.no_grad()
    def generate(self, x: Inputs, max_new_tokens: int = 64) -> Answer:
        """The model's greedy answer to a prompt, without end-of-turn tokens; an answer that x has is ignored."""
        made = self.model.generate(
            **x.prompt_inputs(), do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=self._stops()[0]
        )
        ids = made[0, x.answer_start :].tolist()
        kept = list(itertools.takewhile(lambda i: i not in self._stops(), ids))
        text = "".join(self.token_strings(kept))
        if self.processor is not None:
            text = self.prompter.tokenizer.decode(kept, skip_special_tokens=True)
        return Answer(text.strip(), kept, finished=len(kept) < len(ids))

    def _stops(self) -> list[int]:
        stops = self.model.generation_config.eos_token_id
        stops = self.model.config.get_text_config().eos_token_id if stops is None else stops
        return list(stops) if isinstance(stops, (list, tuple)) else [0 if stops is None else stops]

    @torch.no_grad()
    def run(self, x: Inputs | Batch) -> Float[Tensor, "batch position vocabulary"]:
        """The plain model's logits, with nothing hooked."""
        return self.call(x.model_inputs)

    def call(self, model_inputs: Mapping[str, Any]) -> Float[Tensor, "batch position vocabulary"]:
        """The model's logits.

        Raises:
            InputError: the image tokens of the prompt do not match the features of the image.
            ModelError: the model was put in training mode.
        """
        if self.model.training:
            raise ModelError("the model is in training mode, where dropout changes every number: call model.eval()")
        try:
            return self.model(**model_inputs, use_cache=False).logits
        except (ValueError, RuntimeError) as error:
            if ("match" if isinstance(error, ValueError) else "shape mismatch") not in str(error):
                raise
            count = int(self.visual_in(model_inputs).sum())
            raise InputError(
                f"the prompt has {count} image tokens, and the image gives another number of features "
                f"({error}). Was the prompt cut, or made for another image? Prepare it with its own processor."
            ) from error

    @functools.cached_property
    def nnsight(self) -> Any:
        """The same weights under nnsight: `with vlm.nnsight.trace(**x.model_inputs): …`; see `adapters.nnsight`."""
        from lvlm_interp.adapters.nnsight import traced

        return traced(self)

    def visiting(self, visits: Mapping[Site, Edit]) -> contextlib.AbstractContextManager[None]:
        """Within the `with`, each site's value passes through its visit."""
        return visiting(self.model, visits)

    def capture(
        self,
        x: Inputs | Batch,
        sites: str | Iterable[str],
        *,
        positions: Positions | None = None,
        layers: int | Iterable[int] | None = None,
        heads: int | Iterable[int] | None = None,
        reduce: Reduction | None = None,
        dtype: torch.dtype | None = None,
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
                patterns. The logits too are those of these positions.
            layers: of the sites, those in these blocks only; negative numbers count from the last.
            heads: which heads are kept, along the site's own axis: in grouped-query attention k and v have fewer.
            reduce: `"mean"` over the (chosen) positions, or the `"last"` of them; that axis goes away.
            dtype: what is kept is converted to this type; a mean is computed in it.
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
            InputError: positions out of range, an unknown reduction, or image tokens that do not match the image.
            VisibilityError: an unknown role.
        """
        chosen = match(self.sites, sites, self.missing)
        if layers is not None:
            chosen = in_layers(chosen, depths_of(self.sites.values()), layers)
        choice = choose(x, chosen, positions, heads, reduce, dtype, device, grad)
        changes: dict[Site, Edit] = {}
        for name, edit in (edits or {}).items():
            changed = match(self.sites, name, self.missing)
            if twice := [site.name for site in changed if site in changes]:
                raise SiteError(f"{name!r} means {twice[0]!r}, which another edit means too; give it one")
            changes.update(dict.fromkeys(changed, edit))
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            recording(self.model, chosen, choice, changes) as found,
        ):
            logits = choice.of_logits(self.call(x.model_inputs))
        return Capture({**found, "logits": logits}, choice)


def _shown(part: Mapping[str, Any]) -> Shown:
    video = part["type"] == "video"
    return Shown(tuple(part["video"]) if video else (part["image"],), video)
