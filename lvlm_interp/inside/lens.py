"""Logit lens: what the model would say if it stopped after a layer, at any position, image tokens included.

The residual stream after n blocks goes through the final norm and the unembedding (nostalgebraist 2020; on image
tokens Neo et al. 2024). Without the norm (`norm=False`) it is the variant of Jiang et al. 2024. Layer n means *after n
blocks*, as in transformers' `hidden_states`: layer 0 is the embeddings, the last layer is what the model says itself.

Promise: at the last layer the lens gives the model's own log-probabilities. Nothing of size layers × positions ×
vocabulary is ever held: a few positions go through the unembedding at a time, and only what is asked of them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.fields import MOST, POSITIVE, Range
from lvlm_interp.given import explained, whole
from lvlm_interp.inputs.example import ROLES, Inputs
from lvlm_interp.inside.ending import need_plain_end
from lvlm_interp.inside.tuned_lens import TunedLens
from lvlm_interp.model.choice import Positions, indices, listed
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.pairs import Comparable
from lvlm_interp.results import heading, table, text
from lvlm_interp.shown import table_html

FEW_COLUMNS = 6  # positions that are printed
CAN_BE_NONE: Range = (-math.inf, 0)  # log-probabilities, of what a part of the vocabulary leaves out too
Pieces = Literal["max", "first"]
Vocabulary = Literal["all", "text", "image"]


@dataclass(frozen=True)
class Lens(Comparable):
    """What each layer would say at each position.

    Attributes:
        layers: numbers of layers; n is the residual stream after n blocks.
        positions: positions of the prompt, `[position]`.
        tokens, roles: what stands at each of them.
        top_ids, top_logprobs: the k likeliest tokens and their log-probabilities in nats, `[layer, position, k]`.
        top_words: the same tokens as text.
        entropy: of the whole distribution, nats, `[layer, position]`.
        kl: divergence of the layer's distribution from the last layer's, KL(last ‖ layer) in nats, `[layer, position]`.
        targets: words that were asked for.
        target_tokens: the tokens that each was read as.
        target_logprob: their log-probability in nats, `[target, layer, position]`; of a word of several tokens that of
            its likeliest (or first) token, see `lens`.
        target_rank: how many tokens are at least as likely, 1 for the likeliest, `[target, layer, position]`.
    """

    along: ClassVar[Mapping[str, str]] = {
        "layers": "layer",
        "top_words": "layer",
        "tokens": "position",
        "roles": "position",
        "targets": "target",
    }
    among: ClassVar[Mapping[str, Collection[str]]] = {"roles": ROLES}
    ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("layers", "positions", "top_ids", "entropy", "kl"), POSITIVE),
        **dict.fromkeys(("top_logprobs", "target_logprob"), CAN_BE_NONE),
        "target_rank": (1, MOST),
    }
    keys = ("layer", "position", "token", "role")
    agreeing = ("layers", "positions", "tokens", "target_names")
    settings = ("norm", "pieces")
    layers: tuple[int, ...]
    positions: Int[Tensor, " position"]
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    top_ids: Int[Tensor, "layer position k"]
    top_logprobs: Float[Tensor, "layer position k"]
    top_words: tuple[tuple[tuple[str, ...], ...], ...]
    entropy: Float[Tensor, "layer position"]
    kl: Float[Tensor, "layer position"]
    targets: tuple[str, ...]
    target_logprob: Float[Tensor, "target layer position"]
    target_rank: Int[Tensor, "target layer position"]
    target_tokens: tuple[tuple[str, ...], ...] = ()

    @property
    def target_names(self) -> tuple[str, ...]:
        """The tokens that were read for each target: `Pur|ple` for the likeliest of several."""
        return tuple("|".join(tokens) for tokens in self.target_tokens) or self.targets

    def __post_init__(self) -> None:
        super().__post_init__()
        shape, words = self.top_ids.shape, self.top_words
        if any(len(layer) != shape[1] or {len(some) for some in layer} - {shape[2]} for layer in words):
            raise InputError(f"there are {list(shape)} likeliest tokens by layer and position, and other words")

    def of(self, target: str) -> Float[Tensor, "layer position"]:
        """Log-probability of one target, nats.

        Raises:
            InputError: it was not asked for.
        """
        if target not in self.targets:
            raise InputError(f"{target!r} was not a target of this lens; it has {list(self.targets)}")
        return self.target_logprob[self.targets.index(target)]

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer and position.

        Columns: `layer`, `position`, `token`, `role`, `word` (the likeliest) and its `logprob`, `entropy`, `kl`, and
        for each target `logprob[token]` and `rank[token]`, named by the token that was read (`target_names`).
        """
        index = pd.MultiIndex.from_product([self.layers, range(len(self.positions))], names=["layer", "position"])
        frame = index.to_frame(index=False)
        at = frame["position"].tolist()
        frame["position"] = self.positions[at].tolist()
        frame["token"], frame["role"] = [self.tokens[i] for i in at], [self.roles[i] for i in at]
        frame["word"] = [words[0] for layer in self.top_words for words in layer]
        frame["logprob"] = self.top_logprobs[..., 0].flatten().tolist()
        frame["entropy"], frame["kl"] = self.entropy.flatten().tolist(), self.kl.flatten().tolist()
        for n, target in enumerate(self.target_names):
            frame[f"logprob[{target}]"] = self.target_logprob[n].flatten().tolist()
            frame[f"rank[{target}]"] = self.target_rank[n].flatten().tolist()
        return self.identified(frame)

    def _repr_html_(self) -> str:
        """The likeliest word of every layer at every position, the last layer on top."""
        rows = [[words[0] for words in layer] for layer in self.top_words][::-1]
        frame = pd.DataFrame(rows, index=list(self.layers)[::-1], columns=[f"{t} ({p})" for t, p in self._columns()])
        note = "likeliest word after each layer (rows), by position (columns)"
        return table_html(frame, caption=note)

    @property
    def note(self) -> str:
        return f"likeliest word after each layer, {len(self.tokens)} positions, {len(self.targets)} targets"

    def _columns(self) -> Iterator[tuple[str, int]]:
        return zip(self.tokens, self.positions.tolist(), strict=True)


@text.register
def _grid(result: Lens) -> str:
    """The likeliest words of the last layers, the last on top, at few positions, and which these are."""
    rows = [[words[0] for words in layer] for layer in result.top_words][::-1]
    frame = pd.DataFrame(rows, index=list(result.layers)[::-1], columns=list(result.tokens))
    few, which = _telling(result.roles)
    told = f"\nshown: positions {result.positions[few].tolist()}, {which}" if len(result.tokens) > FEW_COLUMNS else ""
    return f"{heading(result)}{told}\n{table(frame.iloc[:, few].map(repr), index=True)}"


def _telling(roles: Sequence[str]) -> tuple[slice, str]:
    """Few positions that a reader asks about: where the answer is read from and stands; else the last, where the
    model speaks next."""
    last = max(0, len(roles) - FEW_COLUMNS)
    if "answer" not in roles:
        return slice(last, None), "the last"
    start = min(last, max(0, roles.index("answer") - 1))
    return slice(start, start + FEW_COLUMNS), "where the answer is read from and stands"


@explained
@in_one_go
@torch.no_grad()
def lens(
    vlm: HookedVLM,
    x: Inputs,
    layers: int | Iterable[int] | None = None,
    positions: Positions | None = None,
    *,
    target: str | int | Sequence[str | int] = (),
    k: int = 5,
    norm: bool = True,
    pieces: Pieces = "max",
    vocabulary: Vocabulary = "all",
    tuned: TunedLens | None = None,
    progress: bool = False,
) -> Lens:
    """Decode the residual stream of any layers at any positions.

    Args:
        vlm: the model.
        x: an example.
        layers: numbers of layers, 0 for the embeddings; negative ones count from the last. All by default.
        positions: roles (`"image"`) or indices; all by default.
        target: words whose probability and rank are followed, as they are written (`" banana"` with its blank is
            another token than `"banana"`), or ids of tokens.
        k: how many of the likeliest tokens are kept.
        norm: apply the final norm, as the model itself does; False is the variant of Jiang et al. 2024, whose numbers
            are not probabilities of the model even at the last layer.
        pieces: what stands for a target of several tokens: its likeliest token (`max`, Jiang et al. 2024) or its first.
        vocabulary: `text` or `image` leaves only words, or only visual codes, of a vocabulary that holds both
            (Chameleon, Emu3), and divides by their sum.
        tuned: translators from `fit_tuned_lens`, applied before the norm.
        progress: show a progress bar.

    Raises:
        InputError: a lens fitted on another model, a target that tokenises to nothing or is not in the vocabulary,
            targets that read the same, k beyond the (part of the) vocabulary, a part of it that is empty.
        SiteError: a layer that the model does not have.
        ModelError: the model gives NaN or infinity; an edit, or a hook of yours, behind the last block.
    """
    if pieces not in ("max", "first"):
        raise InputError(f"pieces is 'max' or 'first', got {pieces!r}")
    need_plain_end(vlm, "a lens")
    chosen, at = _layers(vlm, layers), indices(x, range(x.length) if positions is None else positions)
    last = vlm.depth
    states = _states(vlm, x, sorted({*chosen, last}), at)
    if tuned is not None:
        tuned.need_model(vlm)
        states = {n: tuned.translated(n, state, x.where("image")[at]) for n, state in states.items()}
    several: Any = target
    words = tuple(map(whole, (target,) if isinstance(whole(several), (str, int)) else several))
    asked = [_pieces(vlm, word, pieces) for word in words]
    spelt = tuple(tuple(vlm.token_strings(ids)) for ids in asked)
    names = tuple(vlm.token_strings([w])[0] if isinstance(w, int) else w for w in words)
    if len({*names}) < len(names) or len({*spelt}) < len(spelt):
        raise InputError(
            f"some of the targets {list(names)} read the same, as the tokens {list(spelt)}: ask for them one at a time"
        )
    allowed, size = _allowed(vlm, vocabulary), vlm.readout.vocabulary
    most = size if allowed is None else int(allowed.sum())
    if not 1 <= k <= most:
        raise InputError(f"k is between 1 and the vocabulary's {most}, got {k}")
    found: list[list[_Read]] = [[] for _ in chosen]
    with tqdm(total=len(chosen) * len(at), desc="lens", disable=not progress, leave=False) as bar:
        for some in torch.arange(len(at)).split(vlm.readout.rows_at_once):
            final = _logprobs(vlm, states[last][some], norm, allowed)
            for n, layer in enumerate(chosen):
                here = final if layer == last else _logprobs(vlm, states[layer][some], norm, allowed)
                found[n].append(_read(here, final, asked, k))
                bar.update(len(some))
    used: dict[str, Any] = {
        "layers": [*map(int, chosen)],
        "positions": at.tolist(),
        "target": [[*map(int, ids)] for ids in asked],
        "k": k,
        "norm": norm,
        "pieces": pieces,
        "vocabulary": vocabulary,
        "tuned": tuned is not None,
        "fitted": None if tuned is None else {**tuned.provenance.parameters, "example": tuned.provenance.example},
    }
    return _lens(vlm, x, chosen, at, (names, spelt), [_joined(parts) for parts in found], used)


@explained
def visual_codes(vlm: HookedVLM) -> Bool[Tensor, " vocabulary"]:
    """Which entries of the vocabulary are visual codes; none in most models."""
    codes = torch.zeros(vlm.readout.vocabulary, dtype=torch.bool)
    codes[list(vlm.visual_codes)] = True
    return codes


@dataclass(frozen=True)
class _Read:
    """What is kept of one layer at some positions."""

    ids: Int[Tensor, "position k"]
    logprobs: Float[Tensor, "position k"]
    entropy: Float[Tensor, " position"]
    kl: Float[Tensor, " position"]
    logprob: Float[Tensor, "target position"]
    rank: Int[Tensor, "target position"]


def _read(
    here: Float[Tensor, "position vocabulary"],
    final: Float[Tensor, "position vocabulary"],
    targets: Sequence[list[int]],
    k: int,
) -> _Read:
    chances = here.exp()
    best = [here[:, ids].amax(1) for ids in targets]
    rank = [(here >= b[:, None]).sum(1) for b in best]
    top = here.topk(k, 1)
    return _Read(
        top.indices.cpu(),
        top.values.cpu(),
        -_summed(chances, here),
        _summed(final.exp(), final) - _summed(final.exp(), here),
        torch.stack(best).cpu() if best else here.new_zeros(0, len(here)).cpu(),
        torch.stack(rank).cpu() if rank else torch.zeros(0, len(here), dtype=torch.long),
    )


def _summed(chances: Tensor, logprobs: Tensor) -> Float[Tensor, " position"]:
    """Σ p·log q, where what is impossible counts nothing."""
    return (chances * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1).cpu()


def _joined(parts: Sequence[_Read]) -> _Read:
    return _Read(
        torch.cat([p.ids for p in parts]),
        torch.cat([p.logprobs for p in parts]),
        torch.cat([p.entropy for p in parts]),
        torch.cat([p.kl for p in parts]),
        torch.cat([p.logprob for p in parts], 1),
        torch.cat([p.rank for p in parts], 1),
    )


def _lens(
    vlm: HookedVLM,
    x: Inputs,
    layers: Sequence[int],
    at: Tensor,
    targets: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]],
    found: Sequence[_Read],
    used: Mapping[str, Any],
) -> Lens:
    ids = torch.stack([f.ids for f in found])
    distinct = ids.unique().tolist()
    names = dict(zip(distinct, vlm.token_strings(distinct), strict=True))
    return Lens(
        layers=tuple(layers),
        positions=at,
        tokens=tuple(x.tokens[i] for i in at.tolist()),
        roles=tuple(x.roles[i] for i in at.tolist()),
        top_ids=ids,
        top_logprobs=torch.stack([f.logprobs for f in found]),
        top_words=tuple(tuple(tuple(names[i] for i in row) for row in layer) for layer in ids.tolist()),
        entropy=torch.stack([f.entropy for f in found]),
        kl=torch.stack([f.kl for f in found]),
        targets=targets[0],
        target_tokens=targets[1],
        target_logprob=torch.stack([f.logprob for f in found], 1),
        target_rank=torch.stack([f.rank for f in found], 1),
        provenance=vlm.provenance("tuned lens" if used["tuned"] else "logit lens", x, **used),
    )


def _layers(vlm: HookedVLM, layers: int | Iterable[int] | None) -> list[int]:
    depth = vlm.depth
    asked = list(range(depth + 1)) if layers is None else listed(layers)
    if wrong := [n for n in asked if not -depth - 1 <= n <= depth]:
        raise SiteError(f"there is no layer {wrong[0]}: this model has 0 (the embeddings) to {depth} (the last)")
    if not asked:
        raise SiteError("no layer was asked for; layers=None reads all")
    found = [n % (depth + 1) for n in asked]
    if twice := [n for n in found if found.count(n) > 1]:
        raise SiteError(f"the layer {twice[0]} is asked for twice; negative numbers count from the last")
    return found


def _states(vlm: HookedVLM, x: Inputs, layers: Sequence[int], at: Tensor) -> dict[int, Float[Tensor, "position width"]]:
    """The residual stream after each number of blocks, at the positions."""
    names = {n: f"blocks.{n - 1}.hook_resid_post" if n else "blocks.0.hook_resid_pre" for n in layers}
    found = vlm.capture(x, list(names.values()), positions=at)
    need_finite(vlm, x, *found.values())
    return {n: found[name][0] for n, name in names.items()}


def _pieces(vlm: HookedVLM, word: str | int, pieces: Pieces) -> list[int]:
    """The tokens that stand for a target."""
    ids = [word] if isinstance(word, int) else vlm.prompter.lettered_ids(word)
    if outside := [i for i in ids if not 0 <= i < vlm.readout.vocabulary]:
        raise InputError(f"token {outside[0]} is not in the vocabulary of {vlm.readout.vocabulary} tokens")
    return ids if pieces == "max" else ids[:1]


def _allowed(vlm: HookedVLM, vocabulary: Vocabulary) -> Bool[Tensor, " vocabulary"] | None:
    if vocabulary == "all":
        return None
    if vocabulary not in ("text", "image"):
        raise InputError(f"vocabulary is 'all', 'text' or 'image', got {vocabulary!r}")
    codes = visual_codes(vlm)
    if not codes.any():
        raise InputError(f"the vocabulary of {vlm.name} holds no visual codes; use vocabulary='all'")
    return (codes if vocabulary == "image" else ~codes).to(vlm.device)


def _logprobs(
    vlm: HookedVLM, states: Float[Tensor, "position width"], norm: bool, allowed: Tensor | None
) -> Float[Tensor, "position vocabulary"]:
    logits = (vlm.readout(states) if norm else vlm.readout.logits(states)).float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.log_softmax(-1)
