"""Tables in, tables out: `--table` reads examples, `--frame` writes what is printed to a file."""

import csv
import importlib
import inspect
import io
import json
import math
import pkgutil

import pandas as pd
import pytest

import lvlm_interp as li
from lvlm_interp.cli import commands
from lvlm_interp.errors import OutputError
from lvlm_interp.report import frames
from tests.made import made


@pytest.fixture
def table(tmp_path):
    from lvlm_interp.reference import make_scene

    for n, noun in enumerate(("cat", "banana")):
        make_scene(n, objects=[noun]).image.save(tmp_path / f"{n}.png")
    rows = "0.png,What is in the image?,A cat.\n1.png,What is in the image?,A banana.\n"
    (tmp_path / "t.csv").write_text(f"image,question,answer\n{rows}")
    return tmp_path / "t.csv"


@pytest.fixture
def loaded(reference, monkeypatch):
    asked = []
    monkeypatch.setitem(vars(li), "load", lambda name, **options: asked.append(options) or reference)
    return asked


READ = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}


@pytest.mark.parametrize("kind", READ)
def test_a_frame_is_what_its_name_says(tmp_path, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    frame = made().contrast.to_frame().assign(example="ab12")
    path = frames.save_frame(frame, tmp_path / f"f{kind.upper()}")
    pd.testing.assert_frame_equal(READ[kind](path), frame, check_dtype=False, rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


ROWS = {
    ".csv": lambda written: list(csv.DictReader(io.StringIO(written, newline=""))),
    ".json": json.loads,
    ".jsonl": lambda written: [json.loads(line) for line in written.splitlines()],
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("text", ["\r", "a\rb", "a\r\nb", "a\nb", 'a"b', "a,b"])
def test_a_cell_stays_one_cell_and_numbers_keep_their_digits(tmp_path, text, kind):
    """pandas leaves a carriage return without quotes, and rounds numbers of JSON to ten decimals."""
    frame = pd.DataFrame({"token": [text, "z"], "p": [1.2345678e-11, 1 / 3], "n": [2**53 + 1, 7]})
    rows = ROWS[kind](frames.save_frame(frame, tmp_path / f"f{kind}").read_bytes().decode())
    found = [(row["token"], float(row["p"]), int(row["n"])) for row in rows]
    assert found == list(frame.itertuples(index=False, name=None))


def test_what_is_no_number_is_null(tmp_path):
    frame = pd.DataFrame({"p": [math.nan, math.inf], "label": [None, pd.NA]})
    path = frames.save_frame(frame, tmp_path / "f.json")
    assert json.loads(path.read_text()) == [{"p": None, "label": None}] * 2


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match="pip install pyarrow"):
        frames.save_frame(made().contrast.to_frame(), tmp_path / "f.parquet")


@pytest.mark.parametrize("command", ["contrast", "credit", "lens", "direct"])
def test_a_table_gives_one_frame(run, loaded, table, tmp_path, command):
    out = tmp_path / "frame.jsonl"
    status, printed, err = run(command, "--table", table, "--frame", out, "--json", "--dtype", "float32")
    assert (status, err) == (0, "") and loaded == [{"device": None, "dtype": "float32"}]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [json.loads(line)["answer"] for line in printed.splitlines()] == ["A cat.", "A banana."]
    assert {row["table_row"] for row in rows} == {1, 2} and next(iter(rows[0])) == "table_row"
    status, _, err = run(command, "--table", table, "--frame", out)
    assert status == 1 and "exists" in err


@pytest.mark.usefixtures("loaded")
def test_what_was_done_before_an_interrupt_is_written(run, table, tmp_path, monkeypatch):
    real, done = li.contrast, []

    def second_is_interrupted(*args, **told):
        done.append(args)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(*args, **told)

    monkeypatch.setitem(vars(li), "contrast", second_is_interrupted)
    status, _, err = run("contrast", "--table", table, "--frame", tmp_path / "f.csv")
    assert (status, err.strip()) == (130, "interrupted")
    assert set(pd.read_csv(tmp_path / "f.csv")["table_row"]) == {1}


@pytest.mark.usefixtures("loaded")
def test_a_frame_of_a_map(run, table, tmp_path):
    told = ["--image", tmp_path / "0.png", "--question", "What is in the image?", "--answer", "A cat."]
    status, _, _ = run("heatmap", *told, "--out", tmp_path / "map.pdf", "--frame", tmp_path / "map.csv")
    frame = pd.read_csv(tmp_path / "map.csv")
    assert status == 0 and set(frame["token"]) == {"A", "cat", "."} and len(frame) == 3 * 64
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("loaded")
def test_a_table_is_diagnosed_on_one_page(run, table, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(vars(li), "diagnose", lambda vlm, **told: asked.append(told) or made())
    status, out, _ = run("diagnose", "--table", table, "--out", tmp_path / "out", "--frame", tmp_path / "f.csv")
    assert status == 0 and out.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert [one["answer"] for one in asked] == ["A cat.", "A banana."]
    assert len(list((tmp_path / "out").iterdir())) == 3 and set(pd.read_csv(tmp_path / "f.csv")["table_row"]) == {1, 2}


def test_every_command_that_opens_a_model_says_where_and_in_which_numbers():
    for file in pkgutil.iter_modules(commands.__path__):
        command = importlib.import_module(f"{commands.__name__}.{file.name}")
        options = inspect.signature(getattr(command, file.name, lambda: None)).parameters
        if file.name not in ("reference", "methods"):
            assert {"device", "dtype"} <= set(options), file.name
