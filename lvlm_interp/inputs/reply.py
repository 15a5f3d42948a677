"""How an answer stands behind a prompt: its own ids, and what the template writes before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Opening:
    """What a template writes between the prompt that generation begins with and a reply.

    Attributes:
        ids: such as a block of thoughts that is empty. A blank at its end may be a token of its own before one answer,
            and one token with the beginning of another.
        cut: ids at the end of the prompt in whose place they stand: a blank that is one token with what follows.
    """

    ids: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ids or self.cut)

    @classmethod
    def between(cls, prompt: Sequence[int], full: Sequence[int], start: int) -> Opening:
        """What stands behind a prompt in its rendering with a reply, whose own ids begin at `start`."""
        kept = common(prompt, full[:start])
        return cls(tuple(full[kept:start]), tuple(prompt[kept:]))

    def without(self, dropped: int) -> Opening:
        """The same without its last ids."""
        return Opening(self.ids[: max(0, len(self.ids) - dropped)], self.cut)


UNOPENED = Opening()


@dataclass(frozen=True)
class Reply:
    """An answer's ids, without an end-of-turn token.

    Attributes:
        ids: as they follow the conversation.
        dropped: how many ids that end the template's usual opening are part of these.
    """

    ids: list[int]
    dropped: int = 0

    def behind(self, usual: Opening, opened: Opening) -> list[int]:
        """The ids as they follow a prompt with the opening of another answer."""
        whole, before = [*usual.without(self.dropped).ids, *self.ids], [*opened.ids]
        return whole[len(before) :] if whole[: len(before)] == before else self.ids


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
