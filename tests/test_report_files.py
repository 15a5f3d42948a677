"""What is written to disk, and what is left alone."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_interp.errors import OutputError
from lvlm_interp.report import explorer, export, placing
from tests.made import made, made_map
from tests.pages import Page


def test_written_files(tmp_path):
    one = made()
    assert export.write(one, tmp_path / "new" / "out") == tmp_path / "new" / "out" / "report.html"
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"report.html", "diagnosis.json", "tokens.csv", "heatmaps.npz", "heatmaps.png"}
    out = tmp_path / "new" / "out"
    assert json.loads((out / "diagnosis.json").read_text())["answer"] == "Purple."
    assert (out / "tokens.csv").read_text().startswith("word,prior,credit[question],credit[image],total,")
    with np.load(out / "heatmaps.npz", allow_pickle=False) as arrays:
        assert arrays["words"].tolist() == ["Purple", "."] and arrays["values"].shape == (2, 2, 3)
        assert arrays["boxes"].shape == (2, 3, 4) and arrays["size"].tolist() == [60, 40]
        assert not any(arrays[name].dtype == object for name in arrays)
    assert Image.open(out / "heatmaps.png").format == "PNG"


def test_several_share_a_page(tmp_path):
    export.write([made(), made(question="Where?")], tmp_path / "out", title="Two")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.html", "01-what-color-is-it", "02-where"}
    assert (tmp_path / "out" / "02-where" / "heatmaps.png").is_file()
    assert len(Page((tmp_path / "out" / "report.html").read_text()).of("section", "diagnosis")) == 2


def test_what_is_there_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(OutputError, match="not empty"):
        export.write(made(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "report.html"]
    export.write(made(), tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine" and "<html" in (tmp_path / "report.html").read_text()
    with pytest.raises(OutputError, match="is a file"):
        export.write(made(), tmp_path / "notes.txt")
    (tmp_path / "tokens.csv").unlink()
    (tmp_path / "tokens.csv").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        export.write(made(), tmp_path, force=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    write_bytes = export.Path.write_bytes

    def full(path, data):
        if path.name == "heatmaps.npz":
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(export.Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        export.write(made(), out)
    assert list(out.iterdir()) == [] if there else list(tmp_path.iterdir()) == []


def test_an_interrupted_call_removes_only_what_is_its_own(tmp_path, monkeypatch):
    """Another call wrote into the directory that this one had made."""
    out = tmp_path / "deep" / "out"

    def interrupted(*_):
        (tmp_path / "deep" / "theirs.csv").write_text("theirs")
        (out / ".partial-theirs").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_arrays", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.write(made(), out)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"deep", "deep/theirs.csv", "deep/out", "deep/out/.partial-theirs"}


def test_files_that_are_placed_half_are_taken_away_again(tmp_path, monkeypatch):
    (tmp_path / "tokens.csv").write_text("old")
    replace = placing.os.replace

    def cut(source, target):
        if target.name == "heatmaps.npz":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(placing.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        export.write(made(), tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.csv"]  # there before: the new one, whole


def test_what_a_killed_call_left_does_not_block_the_next(tmp_path):
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / ".partial-x" / "report.html").write_text("half")
    export.write(made(), tmp_path)
    assert (tmp_path / "report.html").is_file()


BAD_PLACES = {
    "too long": lambda folder: folder / ("x" * 300),
    "under a file": lambda folder: folder / "file" / "out",
    "not a name": lambda folder: folder / "a\0b",
}


@pytest.mark.parametrize("place", BAD_PLACES)
@pytest.mark.parametrize("ask", [export.check, export.check_file])
def test_places_that_cannot_be_written_to_are_refused_first(tmp_path, place, ask):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        ask(BAD_PLACES[place](tmp_path))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("ask", [export.check, export.check_file])
def test_disks_that_take_nothing_are_refused_first(tmp_path, monkeypatch, number, ask):
    def refused(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(placing.tempfile, "TemporaryFile", refused)
    with pytest.raises(OutputError, match=os.strerror(number)):
        ask(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml"), ("a.jpg", b"\xff\xd8")]
)
def test_a_heatmap_is_what_its_name_says(tmp_path, name, begins):
    path = export.save_heatmap(made_map(("cat",), torch.ones), None, tmp_path / name)
    assert path.read_bytes().startswith(begins) and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.tiff2", "a", "a.pdf.", ".png"])
def test_a_heatmap_of_no_known_kind_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.pdf, .*\.png, .*\.svg"):
        export.save_heatmap(made_map(("cat",), torch.ones), None, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_file_names_are_plain():
    assert [export.slug(t) for t in ("Purple", "../../etc/passwd", "日本", "Café!", "a" * 90)] == [
        "purple",
        "etc-passwd",
        "word",
        "cafe",
        "a" * 40,
    ]


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path, monkeypatch):
    page = explorer.page

    def slow(*args):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "report.html").write_text("theirs")
        return page(*args)

    monkeypatch.setattr(explorer, "page", slow)
    with pytest.raises(OutputError, match="is not empty"):
        export.write(made(), tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text() == "theirs"
    export.write(made(), tmp_path / "out", force=True)  # the control
    assert (tmp_path / "out" / "report.html").read_text() != "theirs"


def test_diagnoses_may_come_one_by_one(tmp_path):
    assert export.write((one for one in (made(), made())), tmp_path / "out").is_file()
