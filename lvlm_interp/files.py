"""Files that are whole or absent: the place where one process makes them, and what one that was killed left behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lvlm_interp.errors import LvlmInterpError, OutputError

PARTIAL = ".partial-"
"""How directories begin that hold what is not whole yet."""
LOCK = ".lock"  # in such a directory; its process holds it while it lives
YOUNG = 1.0  # seconds in which a process that has just made its directory comes to hold its lock
LOCKLESS = 3600.0  # seconds after which a directory without a lock is nobody's: of a process killed before it had one


@contextlib.contextmanager
def aside(folder: Path, prefix: str = PARTIAL, alone: bool = False) -> Iterator[Path]:
    """A directory inside `folder`, on the same disk, to make files in before they are moved in place.

    It is gone when the `with` ends. Those that killed processes left are removed first, those of living ones never.

    Args:
        folder: where.
        prefix: how its name begins.
        alone: a lock is held, so that no other process can have one: all that are there were left.
    """
    sweep(folder, prefix, alone)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
    lock = FileLock(made / LOCK)
    try:
        with contextlib.suppress(OSError, NotImplementedError):  # a disk without locks: it will not be swept
            lock.acquire()
        yield made
    finally:
        lock.release(force=True)
        shutil.rmtree(made, ignore_errors=True)


def sweep(folder: Path, prefix: str = PARTIAL, alone: bool = False) -> None:
    """Remove what killed processes left in `folder`; see `aside`."""
    for left in folder.glob(f"{prefix}*"):
        if alone or _is_left(left):
            shutil.rmtree(left, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether the process that made it is gone: the system then let go of its lock."""
    try:
        locked, age = (folder / LOCK).exists(), time.time() - folder.stat().st_mtime
        if age < (YOUNG if locked else LOCKLESS):
            return False
        with FileLock(folder / LOCK, timeout=0):
            return True
    except (OSError, NotImplementedError, Timeout):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def told(doing: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system says of a path as an error of ours, which begins with "could not" and what was done."""
    try:
        yield
    except LvlmInterpError:
        raise
    except (OSError, ValueError) as error:  # a name may hold what no name can
        said = (error.strerror if isinstance(error, OSError) else None) or error
        raise OutputError(f"could not {doing} {os.fspath(path)}: {said}") from error
