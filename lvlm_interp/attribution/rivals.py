"""What a part of an answer is compared with, and how it is spelt out: as the model would go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.engine.decoder import DecoderInputs
from lvlm_interp.engine.score import score_answers
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.inputs.spelling import LOST, spelled
from lvlm_interp.inputs.words import Segmenter, Unit, Word, by_unicode, first_word
from lvlm_interp.model.vlm import HookedVLM

HALF = 3  # tokens beyond its length that an alternative gets to end in a whole character: one has four bytes at most
ENDS = ".,;:!?… \n。、，；：！？"  # at the end of an alternative, these make no other answer of it


Spellings = tuple[tuple[int, ...], ...]
"""Token ids of each alternative."""


@dataclass(frozen=True)
class Search:
    """How alternatives are come by.

    Attributes:
        unit: of the parts: single tokens are compared by first tokens, words with words, longer parts with as many
            tokens.
        given: alternatives as text, by the number of the part; others are found.
        count: how many are found at most.
        exact: whether what is given are tokens as they read, blank included, rather than words.
        written: whether words that are given stand as they are written, a blank before them or none: an earlier result
            found them so.
        ids: their token ids, by the number of the part, where that result has them.
    """

    unit: Unit | str = "token"
    given: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    count: int = 10
    exact: bool = False
    written: bool = False
    ids: Mapping[int, Spellings] = field(default_factory=dict)

    @property
    def by_word(self) -> bool:
        return self.unit == "word" or callable(self.unit)

    @property
    def segmenter(self) -> Segmenter:
        """What cuts words."""
        return self.unit if callable(self.unit) else by_unicode


@dataclass(frozen=True)
class Rivals:
    """What a part of the answer is compared with.

    Attributes:
        part: the part.
        ids: token ids of each alternative.
        longest: how many tokens they are still to be spelt out to; 0 leaves them as they are.
        words: what cuts words, if they end where a word ends.
        reserve: less likely ones, for when all others read as the part itself.
        begun: log-probability of their first tokens under every coalition, float64.
    """

    part: Word
    ids: list[list[int]]
    longest: int = 0
    words: Segmenter | None = None
    reserve: list[list[int]] = field(default_factory=list)
    begun: Mapping[int, Float[Tensor, " coalition"]] = field(default_factory=dict)


def showing_of(vlm: HookedVLM) -> list[int]:
    """Tokens that stand for pieces of a picture, which no answer is made of."""
    return [token for token in vlm.visual_token_ids if 0 <= token < vlm.readout.vocabulary]


Key = tuple[int, tuple[int, ...]]  # where in the answer an alternative begins, and with which tokens


@explained
def spelt_out(vlm: HookedVLM, x: Inputs, decoder_inputs: DecoderInputs, rivals: Sequence[Rivals]) -> list[Rivals]:
    """Beginnings continued greedily, as the model would go on seeing everything; each reading once.

    Those that read as the part itself, as a likelier one, or as no whole characters are left out; where none is left,
    the likeliest of the reserve takes their place.
    """
    found = _each_once(vlm, x, rivals, _grown(vlm, x, decoder_inputs, rivals))
    empty = [n for n, rival in enumerate(found) if not rival.ids]
    spare = [dataclasses.replace(rivals[n], ids=rivals[n].reserve or rivals[n].ids) for n in empty]
    again = _each_once(vlm, x, spare, _grown(vlm, x, decoder_inputs, spare))
    for n, rival in zip(empty, again, strict=True):
        found[n] = dataclasses.replace(rival, ids=rival.ids[:1] or rivals[n].ids[:1])
    return found


def _grown(vlm: HookedVLM, x: Inputs, decoder_inputs: DecoderInputs, rivals: Sequence[Rivals]) -> dict[Key, list[int]]:
    """Every beginning, and what became of it: all parts of the answer together, a token of each at a time."""
    kinds: dict[Key, Rivals] = {(r.part.start, tuple(ids)): r for r in rivals if r.longest for ids in r.ids}
    spelt, stops = {key: list(key[1]) for key in kinds}, vlm.stops()
    waiting = [key for key in kinds if _length(vlm, kinds[key], spelt[key]) is None]
    while waiting:
        following = _following(vlm, x, decoder_inputs, [(start, spelt[start, ids]) for start, ids in waiting])
        pairs, waiting = list(zip(waiting, following, strict=True)), []
        for key, token in pairs:
            ended = token in stops
            spelt[key] += [] if ended else [token]
            length = _length(vlm, kinds[key], spelt[key], ended)
            if length is None:
                waiting.append(key)
            else:
                del spelt[key][length:]
    return spelt


def _following(
    vlm: HookedVLM, x: Inputs, decoder_inputs: DecoderInputs, begun: Sequence[tuple[int, list[int]]]
) -> list[int]:
    """The likeliest token behind each beginning."""
    # The engine reads the state before each token; a stand-in token asks for the state after the last one.
    asked = [torch.cat([x.answer_ids[:start].cpu(), torch.tensor([*ids, 0])]) for start, ids in begun]
    last = [1] * len(asked)
    scored = score_answers(vlm, x, x.everything[None], asked, decoder_inputs=decoder_inputs, reads=last)
    logits = vlm.readout.logits(torch.stack([s.states[0, 0] for s in scored]))
    logits[:, showing_of(vlm)] = -torch.inf
    likeliest: list[int] = logits.argmax(-1).tolist()
    return likeliest


def _length(vlm: HookedVLM, rival: Rivals, ids: Sequence[int], ended: bool = False) -> int | None:
    """How many tokens an alternative ends with, or None where it goes on; `ended`: the model says no more."""
    stop, known, tokens = len(ids), False, vlm.token_strings(ids)
    text = spelled(tokens, ids, vlm.decode)
    if rival.words is not None:
        stop, known = first_word(tokens, ids, vlm.decode, rival.words)
    full = len(ids) >= rival.longest + (0 if text.ends_whole else HALF)
    return stop if known or full or ended else None


def _each_once(vlm: HookedVLM, x: Inputs, rivals: Sequence[Rivals], spelt: Mapping[Key, list[int]]) -> list[Rivals]:
    return [_distinct(vlm, x, rival, spelt) if rival.longest else rival for rival in rivals]


def _distinct(vlm: HookedVLM, x: Inputs, rival: Rivals, spelt: Mapping[Key, list[int]]) -> Rivals:
    """Those of whole characters, each reading once; of what is no word, each that is written alike."""
    found = [spelt[rival.part.start, tuple(begun)] for begun in rival.ids]
    own = x.answer_ids[rival.part.start : rival.part.stop].tolist()
    read = [_reading(vlm, ids, exact=rival.longest == 1) for ids in (own, *found)]
    once = [read[n] not in read[:n] for n in range(1, len(read))]
    kept = [ids for ids, text, new in zip(found, read[1:], once, strict=True) if new and LOST not in text]
    return dataclasses.replace(rival, ids=kept)


def _reading(vlm: HookedVLM, ids: Sequence[int], exact: bool) -> str:
    """A text without what makes no other answer of it."""
    text = spelled(vlm.token_strings(ids), ids, vlm.decode).text
    if exact:
        return text
    return text.casefold().rstrip(ENDS).strip() or text.strip()
