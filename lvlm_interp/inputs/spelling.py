"""Tokens as one text: what they read as together, and where in it each of them begins.

A tokenizer may cut a character's bytes into several tokens, and reads none of these as that character. So a text is
decoded as a whole, and a token's place in it is how much of it the tokens before already read as.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOST = "�"  # what bytes read as that are no whole character

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Spelled:
    """Tokens as one text.

    Attributes:
        text: what they read as together.
        starts: where in it each token begins; the tokens of one character all begin where it does.
        whole: for each token, whether what stands before it ends with a whole character.
    """

    text: str
    starts: tuple[int, ...]
    whole: tuple[bool, ...]

    def part(self, start: int, stop: int) -> str:
        """What the tokens from `start` to `stop` read as, without the blanks around it; blanks alone are kept."""
        if start >= stop:
            return ""
        edge = self.starts[stop] if stop < len(self.starts) else len(self.text)
        own = self.text[self.starts[start] : edge]
        return own.strip() or own  # a line break is read as one, not as nothing

    @property
    def ends_whole(self) -> bool:
        """Whether the last character is whole."""
        return not self.text.endswith(LOST)


def spelled(tokens: Sequence[str], ids: Sequence[int] | None = None, decode: Decode | None = None) -> Spelled:
    """Tokens as one text.

    Args:
        tokens: what each reads as by itself.
        ids: their ids, and
        decode: what makes text of ids (`Prompter.text`); without it, the texts of the tokens are put together.
    """
    joined = "".join(tokens)
    if ids is None or decode is None:
        return _joined(tokens, joined)
    text = decode(list(ids))
    if LOST not in joined and text.strip() == joined.strip():
        return _joined(tokens, joined)
    before = [decode(list(ids[:n])) for n in range(len(ids))]
    starts = itertools.accumulate((_place(some, text) for some in before), max)
    return Spelled(text, tuple(starts), tuple(text.startswith(b) or not b.endswith(LOST) for b in before))


def _joined(tokens: Sequence[str], text: str) -> Spelled:
    """As the tokens read by themselves; neighbours that are no character are taken for the bytes of one."""
    starts = tuple(itertools.accumulate(map(len, tokens), initial=0))[:-1]
    lost = [text[:start].endswith(LOST) and text[start : start + 1] == LOST for start in starts]
    return Spelled(text, starts, tuple(not one for one in lost))


def _place(before: str, text: str) -> int:
    """Where in a text the tokens go on that read as `before`: a character that is not whole is not there yet."""
    if text.startswith(before):
        return len(before)
    pairs = zip(before.rstrip(LOST), text, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def piece_text(piece: str) -> str:
    """A token as vocabularies write it, with those of its bytes that are no whole character as SentencePiece does.

    Byte-level vocabularies write each byte as a character of its own.
    """
    known = {character: byte for byte, character in _characters().items()}
    if not all(character in known for character in piece):
        return piece
    text = bytes(known[character] for character in piece).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)


def pieces_of(text: str) -> tuple[str, ...]:
    """How vocabularies of several kinds may write a token that reads so."""
    own = re.sub(r"<0x([89A-F][0-9A-F])>", lambda found: chr(0xDC00 + int(found[1], 16)), text)
    known = _characters()
    byte_level = "".join(known[byte] for byte in own.encode("utf-8", "surrogateescape"))
    fallback = f"<0x{ord(text):02X}>" if len(text) == 1 and text.isascii() else text
    return text, text.replace(" ", "▁"), byte_level, fallback


def _characters() -> dict[int, str]:
    """How byte-level vocabularies write each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())
