"""Sparse coders of others: autoencoders and transcoders, opened and computed.

Files are those of SAELens: a directory with `cfg.json` and `sae_weights.safetensors`. None is trained here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.given import explained, explaining

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
BASE = ("W_enc", "W_dec", "b_dec")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "standard": (*BASE, "b_enc"),
    "jumprelu": (*BASE, "b_enc", "threshold"),
    "topk": (*BASE, "b_enc"),
    "gated": (*BASE, "b_gate", "b_mag", "r_mag"),
    "transcoder": (*BASE, "b_enc"),
    "jumprelu_transcoder": (*BASE, "b_enc", "threshold"),
    "skip_transcoder": (*BASE, "b_enc", "W_skip"),
}
"""Weights of each kind of coder, as SAELens names both."""
SCALINGS = ("none", "constant_norm_rescale", "layer_norm")
EPSILON = 1e-5


@explaining
@dataclass(frozen=True, eq=False)
class SparseCoder:
    """Writes a state as a few of many features, and a state from features.

    Attributes:
        architecture: a kind of `NEEDED`.
        site: where states are read, by our names, which are TransformerLens's.
        written: where what it makes stands: the same, but of transcoders.
        weights: by SAELens's names; `W_enc` is `[width, feature]`, `W_dec` `[feature, width]`.
        k: of `topk`, how many features are kept.
        scaling: how states are scaled first, and back at the end: one of `SCALINGS`.
        centred: whether `b_dec` is taken from states first; SAELens does, if a configuration does not say, but not in
            transcoders.
    """

    architecture: str
    site: str
    written: str
    weights: Mapping[str, Tensor]
    k: int | None = None
    scaling: str = "none"
    centred: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in NEEDED:
            raise InputError(f"no coder of the kind {self.architecture!r} can be read; there are {list(NEEDED)}")
        if self.scaling not in SCALINGS:
            raise InputError(f"states are scaled by {list(SCALINGS)}; this coder has {self.scaling!r}")
        if missing := [name for name in NEEDED[self.architecture] if name not in self.weights]:
            raise InputError(f"a coder of the kind {self.architecture!r} has {missing[0]!r}, which is missing")
        if (self.architecture == "topk") != (self.k is not None):
            raise InputError(f"k is of the kind 'topk', which needs it; got {self.architecture}, k={self.k}")
        self._need_shapes()
        if broken := [name for name, value in self.weights.items() if not bool(value.isfinite().all())]:
            raise InputError(f"{broken[0]!r} holds NaN or infinity")

    def _need_shapes(self) -> None:
        wide, features = self.weights["W_enc"].shape if self.weights["W_enc"].ndim == 2 else (0, 0)
        out = (*self.weights["W_dec"].shape, 0)[1]
        shapes = {"W_enc": (wide, features), "W_dec": (features, out), "b_dec": (out,), "W_skip": (wide, out)}
        for name in NEEDED[self.architecture]:
            wanted, got = shapes.get(name, (features,)), tuple(self.weights[name].shape)
            if got != wanted or not features:
                raise InputError(f"{name} is {list(got)}, where {list(wanted)} would fit the other weights")
        if self.written == self.site and wide != out:
            raise InputError(f"it reads states of {wide} numbers and writes {out}, at one site")
        if self.k is not None and not 0 < self.k <= features:
            raise InputError(f"k is 1 to {features} features; got {self.k}")

    def __repr__(self) -> str:
        where = self.site if self.written == self.site else f"{self.site} → {self.written}"
        return f"SparseCoder({self.architecture}, {where}, {self.count} features of {self.width} numbers)"

    @property
    def width(self) -> int:
        return int(self.weights["W_enc"].shape[0])

    @property
    def count(self) -> int:
        """How many features there are."""
        return int(self.weights["W_enc"].shape[1])

    def direction(self, feature: int) -> Float[Tensor, " width"]:
        """What a feature adds, where `written` says: for `li.Steer`.

        Raises:
            InputError: no such feature.
        """
        self.need_features([feature])
        return self.weights["W_dec"][feature].float()

    def need_features(self, asked: Sequence[int]) -> None:
        """Raise for a feature that is not there.

        Raises:
            InputError: names it.
        """
        if wrong := [one for one in asked if not 0 <= one < self.count]:
            raise InputError(f"there is no feature {wrong[0]}: there are {self.count}, counted from 0")

    def encode(self, states: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows feature"]:
        """How active each feature is."""
        return self._encoded(states)[0]

    def decode(
        self, features: Float[Tensor, "*rows feature"], states: Float[Tensor, "*rows width"] | None = None
    ) -> Float[Tensor, "*rows out"]:
        """A state from features; `states` are those that were encoded, where scaling or a skip asks for them.

        Raises:
            InputError: they are needed and not given.
        """
        if states is None and (self.scaling != "none" or "W_skip" in self.weights):
            raise InputError("give the states that were encoded, decode(features, states): their scale is needed")
        made = features @ self._of("W_dec", features) + self._of("b_dec", features)
        if states is None:
            return made
        scaled, back = self._scaled(states.to(features))
        made = made + scaled @ self._of("W_skip", features) if "W_skip" in self.weights else made
        return back(made)

    def contributions(
        self, states: Float[Tensor, "*rows width"], features: Sequence[int]
    ) -> Float[Tensor, "*rows out"]:
        """What these features add to what is made of states, in the states' own scale."""
        active, back = self._encoded(states)
        some = torch.tensor([*features], device=active.device)
        made = active[..., some] @ self._of("W_dec", active)[some]
        return back(made) - back(torch.zeros_like(made))

    def _encoded(self, states: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if states.shape[-1] != self.width:
            raise InputError(f"the coder reads states of {self.width} numbers; got {states.shape[-1]}")
        wide = torch.promote_types(states.dtype, torch.float32)
        scaled, back = self._scaled(states.to(wide))
        read = scaled - self._of("b_dec", scaled) if self.centred else scaled
        return self._activated(read), back

    def _activated(self, read: Tensor) -> Tensor:
        if self.architecture == "gated":
            gate = read @ self._of("W_enc", read) + self._of("b_gate", read)
            size = read @ (self._of("W_enc", read) * self._of("r_mag", read).exp()) + self._of("b_mag", read)
            return (gate > 0).to(read) * size.relu()
        before = read @ self._of("W_enc", read) + self._of("b_enc", read)
        if "threshold" in NEEDED[self.architecture]:
            return before.relu() * (before > self._of("threshold", before)).to(before)
        if self.k is None:
            return before.relu()
        values, places = before.topk(self.k, dim=-1)
        return torch.zeros_like(before).scatter_(-1, places, values.relu())

    def _scaled(self, states: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """States as they are encoded, and what puts what is decoded back into their scale."""
        if self.scaling == "none":
            return states, lambda made: made
        if self.scaling == "layer_norm":
            mean = states.mean(-1, keepdim=True)
            size = (states - mean).std(-1, keepdim=True)
            return (states - mean) / (size + EPSILON), lambda made: made * size + mean
        factor = states.shape[-1] ** 0.5 / states.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return states * factor, lambda made: made / factor

    def _of(self, name: str, like: Tensor) -> Tensor:
        return self.weights[name].to(like)


@explained
def load_sparse_coder(folder: str | Path, *, site: str | None = None, written: str | None = None) -> SparseCoder:
    """Open a sparse autoencoder or a transcoder in SAELens's format.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        site: where it reads, if its configuration does not say, or another model calls it otherwise.
        written: of a transcoder, where it writes.

    Raises:
        InputError: a file that is missing or broken, a kind that cannot be read, weights that do not fit, NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        told = json.loads(Path(folder, CONFIG).read_text(encoding="utf-8"))
        weights = load_file(Path(folder, WEIGHTS))
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise InputError(
            f"no sparse coder can be read from {folder}: it is a folder with {CONFIG} and {WEIGHTS}, {error}"
        ) from error
    if not isinstance(told, dict):
        raise InputError(f"{CONFIG} holds {type(told).__name__}, where settings by name are wanted")
    more = told.get("metadata")
    about: dict[str, Any] = {**told, **(more if isinstance(more, dict) else {})}
    if about.get("finetuning_scaling_factor"):
        raise InputError("its features are scaled after fine-tuning: fold finetuning_scaling_factor into its weights")
    read = site or about.get("hook_name")
    if not isinstance(read, str):
        raise InputError(f"{CONFIG} does not say where it reads: give site='blocks.12.hook_resid_post', say")
    kind, more = str(about.get("architecture", "standard")), about.get("activation_fn_kwargs")
    k = about.get("k", more.get("k") if isinstance(more, dict) else None)
    return SparseCoder(
        architecture=kind,
        site=read,
        written=written or str(about.get("hook_name_out") or read),
        weights=_folded(weights) if about.get("rescale_acts_by_decoder_norm") else weights,
        k=k if isinstance(k, int) and kind == "topk" else None,
        scaling=str(about.get("normalize_activations") or "none"),
        centred="transcoder" not in kind and bool(about.get("apply_b_dec_to_input", True)),
    )


def _folded(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same coder, whose features are as active as what they add is long; the largest are then chosen by that."""
    if not {"W_dec", "W_enc", "b_enc"} <= weights.keys() or weights["W_dec"].ndim != 2:
        return weights  # refused by name, as soon as they are a coder's
    size = weights["W_dec"].norm(dim=-1)
    return {
        **weights,
        "W_enc": weights["W_enc"] * size,
        "b_enc": weights["b_enc"] * size,
        "W_dec": weights["W_dec"] / size[:, None].clamp(min=1e-12),
    }
