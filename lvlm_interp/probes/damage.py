"""What can be wrong with the files of a store, in words that say where, of what, and what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from lvlm_interp.errors import LvlmInterpError, OutputError

PathLike = str | os.PathLike[str]


def gone(path: PathLike, name: str) -> OutputError:
    """The error of features that have no file."""
    return damaged(path, f"files of the features {name!r} are gone")


def damaged(path: PathLike, what: str) -> OutputError:
    """The error of a store that does not hold what was written."""
    folder = os.fspath(path)
    return OutputError(
        f"{folder} is damaged: {what}. Put back what was there; or remove the directory {folder}, and collect anew"
    )


def spoilt(path: PathLike, what: str, error: Exception) -> OutputError:
    """The error of a file that zarr cannot read, without the bytes that it shows of a checksum."""
    said = str(error).strip().partition(". ")[0] or type(error).__name__
    return damaged(path, f"a file of {what} does not hold what was written ({said})")


@contextlib.contextmanager
def unspoilt(path: PathLike, what: str) -> Iterator[None]:
    """Where files of a store are read that were written whole.

    Raises:
        OutputError: zarr makes nothing of one of them.
    """
    try:
        yield
    except (LvlmInterpError, OSError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise spoilt(path, what, error) from error
