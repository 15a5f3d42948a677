"""What may take the place of an example's tokens and masks."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.fields import shown


def need_ids(ids: Any) -> list[int]:
    """Token ids, as a list.

    Raises:
        InputError: what is no id.
    """
    given = list(ids) if isinstance(ids, Iterable) else []
    if not isinstance(ids, Iterable) or not all(map(_is_id, given)):
        raise InputError(f"token ids are whole numbers from 0 on, in a list; got {shown(ids)}")
    return [int(one) for one in given]


def _is_id(one: Any) -> bool:
    whole = isinstance(one, Integral) or (isinstance(one, Tensor) and not one.ndim and not one.is_floating_point())
    return whole and not isinstance(one, bool) and 0 <= int(one) < 2**31


def need_same_tokens(own: Int[Tensor, "1 position"], given: Shaped[Tensor, "1 position"]) -> None:
    """Raise for other tokens: texts and roles would go on saying what they were.

    Raises:
        InputError: names the first.
    """
    differing = (given.cpu() != own.cpu())[0]
    if differing.any():
        raise InputError(
            f"input_ids differ from the example's at position {int(differing.nonzero()[0])}: other tokens are another "
            "example, whose texts and roles are its own; vlm.prepare or vlm.inputs makes one"
        )


def need_read(mask: Shaped[Tensor, "1 position"], start: int) -> None:
    """Raise for a mask that leaves out what an answer is read from: itself, and the position before.

    Raises:
        InputError: names the first.
    """
    left: Bool[Tensor, " answer"] = mask[0, start - 1 :] == 0
    if left.any():
        raise InputError(
            f"attention_mask is 0 at position {start - 1 + int(left.nonzero()[0])}, where the answer is read: it "
            "counts, so put 1 there"
        )
