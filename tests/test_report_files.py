"""What is written to disk, and what is left alone."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from lvlm_interp.errors import OutputError
from lvlm_interp.report import export
from tests.made import made
from tests.pages import Page


def test_written_files(tmp_path):
    one = made()
    assert export.write(one, tmp_path / "new" / "out") == tmp_path / "new" / "out" / "report.html"
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"report.html", "diagnosis.json", "tokens.csv", "heatmaps.npz", "00-purple.png"}
    out = tmp_path / "new" / "out"
    assert json.loads((out / "diagnosis.json").read_text())["answer"] == "Purple."
    assert (out / "tokens.csv").read_text().startswith("word,prior,question,image,total,")
    with np.load(out / "heatmaps.npz", allow_pickle=False) as arrays:
        assert arrays["words"].tolist() == ["Purple", "."] and arrays["values"].shape == (2, 2, 3)
        assert arrays["boxes"].shape == (2, 3, 4) and arrays["size"].tolist() == [60, 40]
        assert not any(arrays[name].dtype == object for name in arrays)
    assert Image.open(out / "00-purple.png").format == "PNG"


def test_several_share_a_page(tmp_path):
    export.write([made(), made(question="Where?")], tmp_path / "out", title="Two")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.html", "01-what-color-is-it", "02-where"}
    assert (tmp_path / "out" / "02-where" / "00-purple.png").is_file()
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


def test_file_names_are_plain():
    assert [export.slug(t) for t in ("Purple", "../../etc/passwd", "日本", "Café!", "a" * 90)] == [
        "purple",
        "etc-passwd",
        "word",
        "cafe",
        "a" * 40,
    ]
