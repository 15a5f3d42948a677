"""The engine: scores of the answer tokens under many coalitions, where a coalition says which positions may be seen.

    score(vlm, x, visible)        visible: bool [coalition, position]

Promise: the same numbers as one masked forward pass per coalition, to float error, at a fraction of the cost:

- a hidden position that no visible row reads is not computed; the others keep their position ids;
- what several coalitions compute alike (a prefix of equal rows) is computed once;
- what is left is packed, coalition after coalition, into rows of one forward pass under a block mask, in which rows
  that several sequences compute alike stand once (a tree, as in speculative decoding: Miao et al. 2023);
- the unembedding runs on the rows that predict answer tokens only.

The plan is made first, from row numbers alone; then it is carried out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.engine.decoder import ROOM, DecoderInputs, hooked_in_front, made_of, run_to_decoder, standing
from lvlm_interp.engine.packed import planned
from lvlm_interp.engine.plan import sequences_of
from lvlm_interp.errors import InputError, LvlmInterpWarning, VisibilityError
from lvlm_interp.fields import LOGPROB, POSITIVE, Range
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.capture import Edit
from lvlm_interp.model.finite import need_finite
from lvlm_interp.model.holding import in_one_go
from lvlm_interp.model.quantised import ADVICE, mixing
from lvlm_interp.model.readout import Readout
from lvlm_interp.model.vlm import HookedVLM
from lvlm_interp.results import Result

HideFrom = Literal["all", "text"]
SIDE_BY_SIDE = (
    "computes a row by what stands beside it: each coalition runs alone, with all rows in their places, as one masked "
    "pass, and what is hidden still takes part in how the others are rounded"
)


@dataclass(frozen=True, eq=False)
class Scores(Result):
    """What the engine found.

    Attributes:
        tokens: the answer tokens as text.
        visible: which positions each coalition saw.
        states: the state that predicts each answer token, after the final norm, `[coalition, answer, width]`.
        ids: the answer tokens.
        logit: raw logit of each answer token, `[coalition, answer]`, float32.
        logprob: its log-probability in nats, `[coalition, answer]`, float32.
        logodds: its log-odds log p − log(1 − p) in nats, `[coalition, answer]`, float32: goes on telling coalitions
            apart where p is nearly 1.
        rows: rows that were computed for it (a plain forward pass per coalition would compute T each).
    """

    too_large: ClassVar[frozenset[str]] = frozenset({"states"})
    unsaved: ClassVar[frozenset[str]] = frozenset({"readout"})
    along: ClassVar[Mapping[str, str]] = {"tokens": "answer"}
    ranges: ClassVar[Mapping[str, Range]] = {"ids": POSITIVE, "logprob": LOGPROB, "rows": POSITIVE}
    tokens: tuple[str, ...]
    visible: Bool[Tensor, "coalition _"]
    states: Float[Tensor, "coalition answer width"]
    ids: Int[Tensor, " answer"]
    logit: Float[Tensor, "coalition answer"]
    logprob: Float[Tensor, "coalition answer"]
    logodds: Float[Tensor, "coalition answer"]
    rows: int
    readout: Readout | None = field(default=None, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row for each coalition and answer token; logits, and nats."""
        index = pd.MultiIndex.from_product([range(len(self.logit)), range(len(self.tokens))])
        frame = index.to_frame(index=False, name=["coalition", "answer"])
        numbers = {name: getattr(self, name).flatten().tolist() for name in ("logit", "logprob", "logodds")}
        return frame.assign(token=[self.tokens[i] for i in frame["answer"]], **numbers)

    def logits(self, coalition: int | slice = slice(None)) -> Float[Tensor, "*coalition answer vocabulary"]:
        """Logits over the whole vocabulary, float32; take few coalitions at a time where it is large.

        Raises:
            InputError: no such coalition, or scores that were read from a file, which does not hold the model's
                unembedding.
        """
        if self.readout is None:
            raise InputError("scores from a file hold no logits of other tokens: score the example again")
        if not isinstance(coalition, slice) and not -len(self.states) <= coalition < len(self.states):
            raise InputError(f"no coalition {coalition}: {len(self.states)} were scored, counted from 0")
        with torch.no_grad():
            return self.readout.logits(self.states[coalition]).float()


@explained
@in_one_go
@torch.no_grad()
def score(
    vlm: HookedVLM,
    x: Inputs,
    visible: Tensor | None = None,
    hide_from: HideFrom = "all",
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> Scores:
    """Score the answer of `x` under every coalition.

    Args:
        vlm: the model.
        x: one example with an answer.
        visible: which positions each coalition sees, bool `[coalition, position]`; or one alone, `[position]`. By
            default one that sees everything.
        hide_from: `"all"`: a hidden position is seen by nobody; `"text"`: image rows go on seeing every image position,
            and only the other rows lose sight of it.
        progress: show a progress bar.
        decoder_inputs: of the example (`run_to_decoder`), if it is scored more than once.
        edits: site name or glob → function of its whole value, as in `capture`. What is edited in the decoder runs
            coalition by coalition, all rows in their places: row p is position p, and the last row the last token.

    Returns:
        Scores, one row a coalition.

    Raises:
        VisibilityError: a matrix that does not fit, or that hides what an answer is read from.
        InputError: there is no answer.
        ModelError: the model gives NaN or infinity.
    """
    visible = torch.atleast_2d(x.everything if visible is None else visible)
    with vlm.visiting(edits) if edits else contextlib.nullcontext():
        return score_answers(vlm, x, visible, [x.answer_ids], hide_from, progress, decoder_inputs)[0]


@explained
@in_one_go
@torch.no_grad()
def score_answers(
    vlm: HookedVLM,
    x: Inputs,
    visible: Tensor,
    answers: Iterable[Tensor],
    hide_from: HideFrom = "all",
    progress: bool = False,
    decoder_inputs: DecoderInputs | None = None,
    reads: Sequence[int] | None = None,
) -> list[Scores]:
    """As `score`, for several answers to the same prompt: what they share is computed once.

    Columns of `visible` beyond the prompt are not looked at: every answer sees itself so far. Where the same prompt, or
    a beginning of it, is scored many times, `decoder_inputs` hands in what its decoder is called with. `reads` says how
    many of the last tokens of each answer are scored; all by default.
    """
    start = x.answer_start
    if isinstance(answers, Tensor):
        raise InputError(f"answers= are several tensors of ids, in a list; got one, {list(answers.shape)}")
    answers = list(answers)
    if not answers or any(not len(ids) for ids in answers):
        x.need_answer()
        raise VisibilityError("an answer to score has no tokens")
    _check(x, visible, hide_from)
    if decoder_inputs is not None:
        decoder_inputs.need(vlm, x)
    placed, mixed = hooked_in_front(vlm), mixing(vlm.decoder, vlm.dtype)
    edited = standing(vlm) + ([mixed] if mixed else [])
    within = None if placed and len(answers) > 1 else _inputs(vlm, x, answers, decoder_inputs, placed)
    if within is None or (within.last is not None and len({*map(len, answers)}) > 1):
        return [
            score_answers(vlm, x, visible, [ids], hide_from, progress, decoder_inputs, [n])[0]
            for ids, n in zip(answers, reads or map(len, answers), strict=True)
        ]
    if edited:
        within = _standing(within, edited, visible)
    if mixed:
        warnings.warn(f"{mixed} {SIDE_BY_SIDE}. {ADVICE}", LvlmInterpWarning, stacklevel=2)
    decoder_inputs, paths = with_answers(vlm, within, start, answers, placed, bool(edited))
    ends = [ids[-n:] for ids, n in zip(answers, reads or map(len, answers), strict=True)]
    seen = visible[:, :start] & x.model_inputs["attention_mask"][:, :start].bool().cpu()
    found: dict[tuple[int, int], Tensor] = {}
    counts = [len(ids) + bool(edited) for ids in ends]  # the last row, which stands for edits, is read by nobody
    sequences = sequences_of(seen, decoder_inputs.image[:start], paths, counts, hide_from, bool(edited))
    with tqdm(total=len(seen) * len(answers), desc="coalitions", disable=not progress, leave=False) as bar:
        runners = planned(vlm, decoder_inputs, start, sequences, hide_from)
        for sequence, states in itertools.chain(*(runner.run(some) for runner, some in runners)):
            for coalition, answer in sequence.owners:
                found[coalition, answer] = states[: len(ends[answer])]
                bar.update()
    by_answer = [torch.stack([found[c, a] for c in range(len(seen))]) for a in range(len(answers))]
    rows = sum(runner.rows for runner, _ in runners)
    about: dict[str, Any] = {
        "visible": visible,
        "rows": rows,
        "provenance": vlm.provenance("score", x, hide_from=hide_from),
    }
    read = _read(vlm.readout, by_answer, [ids.to(vlm.device) for ids in ends])
    need_finite(vlm, x, *(one[name] for one in read for name in ("states", "logit", "logprob")))
    names = [vlm.token_strings(ids.tolist()) for ids in ends]
    return [Scores(tokens=tokens, **about, **one) for tokens, one in zip(names, read, strict=True)]


def _inputs(
    vlm: HookedVLM, x: Inputs, answers: Sequence[Tensor], given: DecoderInputs | None, placed: bool
) -> DecoderInputs:
    """What the decoder is called with: as given where that will do, and `placed` with the one answer in its place."""
    end = x.answer_start + max(map(len, answers))
    if placed:
        (ids,) = answers
        given = run_to_decoder(vlm, x.with_answer(ids.tolist(), [""] * len(ids), ""), room=0)
    elif given is None or end > given.positions.shape[1]:
        given = run_to_decoder(vlm, x, room=max(ROOM, end - x.answer_start))
    return given.within(vlm, end)


def _standing(inputs: DecoderInputs, edited: Sequence[str], visible: Tensor) -> DecoderInputs:
    """The same for rows that stay in their places.

    Raises:
        VisibilityError: something is hidden where that means passing over it.
    """
    if inputs.sight.recurrent and not visible.all():
        raise VisibilityError(
            f"{edited[0]!r} is edited or hooked, or computes rows by each other, and layers of this model hand a state "
            "from row to row: what is hidden is passed over there, so that rows would not stand where they are sought"
        )
    return dataclasses.replace(inputs, sight=dataclasses.replace(inputs.sight, whole=True, standing=True))


def need_hide_from(hide_from: str) -> None:
    """Raise for rows that cannot lose sight of anything.

    Raises:
        VisibilityError: neither `all` nor `text`.
    """
    if hide_from not in ("all", "text"):
        raise VisibilityError(f"hide_from is 'all' or 'text', got {hide_from!r}")


def _check(x: Inputs, visible: Tensor, hide_from: str) -> None:
    need_hide_from(hide_from)
    if visible.dtype != torch.bool or visible.ndim != 2 or visible.shape[1] not in (x.length, x.answer_start):
        raise VisibilityError(
            f"visible is a bool tensor [coalition, position] with {x.length} positions, "
            f"got {visible.dtype} {tuple(visible.shape)}"
        )
    if not len(visible):
        raise VisibilityError("no coalition was given: visible has no rows")
    if not visible[:, x.answer_start - 1].all():
        role = x.roles[x.answer_start - 1]
        raise VisibilityError(
            f"position {x.answer_start - 1} ({role}) predicts the first answer token and cannot be hidden"
        )
    if not visible[:, x.answer_start :].all():
        raise VisibilityError("the answer so far cannot be hidden from itself")


def with_answers(
    vlm: HookedVLM,
    decoder_inputs: DecoderInputs,
    start: int,
    answers: Sequence[Tensor],
    placed: bool = False,
    whole: bool = False,
) -> tuple[DecoderInputs, list[tuple[int, ...]]]:
    """The rows of the prompt, then those of the answers, and which of them each answer is.

    A row stands for a token after certain other tokens: answers that begin alike share rows. The last token of an
    answer has one only in a `whole` row, since what it predicts is not scored. With `placed` all rows are there.
    """
    nodes: dict[tuple[int, int], int] = {}  # (row before, token) → row
    paths, tokens, steps = [], [], []
    for answer in answers:
        path, row = [], start - 1
        for step, token in enumerate(answer.tolist()[: len(answer) if whole else -1], 1):
            if (row, token) not in nodes:
                nodes[row, token] = start + len(nodes)
                tokens.append(token)
                steps.append(step)
            row = nodes[row, token]
            path.append(row)
        paths.append(tuple(path))
    ids = torch.tensor(tokens, dtype=torch.long, device=decoder_inputs.embeds.device)
    longer = dataclasses.replace(
        decoder_inputs,
        **_rows(vlm, decoder_inputs, start, ids, placed),
        image=torch.cat([decoder_inputs.image[:start], torch.zeros(len(tokens), dtype=torch.bool)]),
        index=torch.cat([torch.arange(start), start - 1 + torch.tensor(steps, dtype=torch.long)]),
    )
    return longer, paths


def _rows(vlm: HookedVLM, inputs: DecoderInputs, start: int, ids: Int[Tensor, " row"], placed: bool) -> dict[str, Any]:
    """The embeddings of the prompt, and what follows from its tokens, followed by those of these tokens."""
    if placed:
        end = start + len(ids)
        return {"embeds": inputs.embeds[:end], "of_tokens": {k: v[:end] for k, v in inputs.of_tokens.items()}}
    embedded = vlm.model.get_input_embeddings()(ids)
    made = {k: made_of(vlm.decoder, k, ids).to(v) for k, v in inputs.of_tokens.items()}
    return {
        "embeds": torch.cat([inputs.embeds[:start], embedded.to(inputs.embeds.dtype)]),
        "of_tokens": {k: torch.cat([v[:start], made[k]]) for k, v in inputs.of_tokens.items()},
    }


def _read(readout: Readout, states: list[Tensor], answers: list[Tensor]) -> list[dict[str, Any]]:
    """Logit and log-probability of the tokens of every answer, a few rows at a time, those of all answers together."""
    rows_read = torch.cat([s.flatten(0, 1) for s in states])  # unembedding a few rows costs as much as unembedding many
    labels = torch.cat([ids.repeat(len(s)) for s, ids in zip(states, answers, strict=True)])
    numbers = []
    for some, read in readout.few_at_once(rows_read):
        logits = read.float()
        place = labels[some, None].to(logits.device)  # a device_map may have put the unembedding on another
        chosen = logits.gather(-1, place)[:, 0]
        others = logits.scatter(-1, place, -torch.inf).logsumexp(-1)
        numbers.append(torch.stack([chosen, chosen - logits.logsumexp(-1), chosen - others]).cpu())
    split = torch.cat(numbers, 1).split([s.shape[0] * s.shape[1] for s in states], 1)
    scores = []
    for s, ids, found in zip(states, answers, split, strict=True):
        logit, logprob, logodds = found.view(3, *s.shape[:2])
        chances = {"logit": logit, "logprob": logprob, "logodds": logodds}
        scores.append({"states": s, "ids": ids, "readout": readout, **chances})
    return scores
