"""Files that belong together: made beside the place where they belong, and moved there when all of them are whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lvlm_interp.errors import OutputError
from lvlm_interp.files import PARTIAL, aside, told

Writer = Callable[[], bytes]
"""Makes the bytes of one file, when it is its turn."""


def check(out_dir: str | Path, force: bool = False) -> Path:
    """The directory to write to, before anything is computed.

    Raises:
        OutputError: it is a file, it holds something and `force` is not given, or it cannot be written to.
    """
    folder = Path(out_dir)
    with told("write to", folder):
        found = os.listdir(folder) if folder.is_dir() else []
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"{folder} is a file; give a directory")
        if not force and any(not name.startswith(PARTIAL) for name in found):  # those are of other calls, or were cut
            raise OutputError(
                f"{folder} is not empty; give another directory, or --force (force=True) to replace our files in it"
            )
        _try(folder)
    return folder


def check_file(path: str | Path, force: bool = False) -> Path:
    """A file to write, before anything is computed.

    Raises:
        OutputError: it is there and `force` is not given, its directory is not, or it cannot be written to.
    """
    file = Path(path)
    with told("write", file):
        if file.exists() and not file.is_file():
            raise OutputError(f"{file} is a directory or a device; give a file")
        if os.path.lexists(file) and not force:
            raise OutputError(f"{file} exists; give another file, or --force (force=True) to replace it")
        if not file.parent.is_dir():
            raise OutputError(f"there is no directory {file.parent} to write {file.name} to")
        _try(file)
    return file


def _try(path: Path) -> None:
    """Write a file without a name where `path` would be made, which a full or read-only disk does not let us."""
    with suppress(FileNotFoundError):
        os.stat(path)  # says of a name that it is too long
    nearest = next(one for one in (path, *path.absolute().parents) if one.is_dir())
    with tempfile.TemporaryFile(dir=nearest) as trial:
        trial.write(b"0")


def placed(folder: Path, files: Mapping[str, Writer], force: bool = False) -> Path:
    """All files or, if one cannot be made, none; nothing that is not ours is touched.

    Raises:
        OutputError: something of the user's stands in the way, also what another process wrote there meanwhile; or the
            folder cannot be written to.
    """
    with told("write to", folder):
        _not_blocked(folder, files)
        with _made(folder), aside(folder) as partial:
            for name, made in files.items():
                path = partial / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(made())
            check(folder, force)
            _move(partial, folder, files)
    return folder


def _move(partial: Path, folder: Path, names: Mapping[str, Writer]) -> None:
    """Whole files to their places; if that is cut off, those that were not there before are taken away again."""
    new = []
    try:
        for name in names:
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            new += [] if target.exists() else [target]
            os.replace(partial / name, target)
    except BaseException:
        for target in new:
            target.unlink(missing_ok=True)
            _remove_empty(target.parent, folder)
        raise


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, made; if what is done in it fails, those that were made for it and hold nothing are removed."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for ours in missing:
            _remove_empty(ours)
        raise


def _remove_empty(folder: Path, *but: Path) -> None:
    """A directory that holds something, of another call for instance, stays."""
    if folder not in but:
        with suppress(OSError):
            folder.rmdir()


def _not_blocked(folder: Path, files: Mapping[str, Writer]) -> None:
    """Raise if something of the user's stands where only a file, or only a directory, of ours can."""
    for name in files:
        path = folder / name
        if path.is_dir():
            raise OutputError(f"{path} is a directory; it stands where a file of ours would go")
        if path.parent.exists() and not path.parent.is_dir():
            raise OutputError(f"{path.parent} is a file; it stands where a directory of ours would go")
