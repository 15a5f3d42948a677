"""What a user can get wrong on the command line: one clear line and a status, before the model takes its time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp.cli import options
from lvlm_interp.errors import InputError
from lvlm_interp.report import placing
from tests.made import made
from tests.test_cli import one_line
from tests.tiny import tiny_inputs, tiny_llava

ASK = ["--question", "What color is the banana?"]
LONG = "x" * 300


@pytest.fixture
def picture(tmp_path):
    from lvlm_interp.reference import make_scene

    path = tmp_path / "banana.png"
    make_scene(2, objects=["banana"], colors=["purple"]).image.save(path)
    return path


@pytest.fixture
def unopened(monkeypatch):
    monkeypatch.setitem(vars(li), "load", lambda name, **options: pytest.fail("the model was opened"))


MISTAKES = {
    # command, its options (`{}` stands for the folder of the test), and what is said: by us (status 1) or of usage (2)
    "blank question": ("contrast", ["--question", " "], 1, "question is empty"),
    "blank answer": ("contrast", [*ASK, "--answer", " "], 1, "tokenises to nothing"),
    "no such counterfactual": ("contrast", [*ASK, "--without", "fog"], 1, "no counterfactual 'fog'"),
    "threshold that is no number": ("contrast", [*ASK, "--threshold", "nan"], 2, "number of nats"),
    "threshold below nothing": ("contrast", [*ASK, "--threshold", "-1"], 2, "number of nats"),
    "threshold without end": ("contrast", [*ASK, "--threshold", "inf"], 2, "number of nats"),
    "an option twice": ("contrast", [*ASK, "--threshold", "1", "--threshold", "2"], 2, "given 2 times"),
    "a counterfactual twice": ("contrast", [*ASK, *["--without", "blank"] * 2], 1, "names one twice"),
    "dtype": ("contrast", [*ASK, "--dtype", "fp16"], 2, "float16"),
    "blank alternative": ("credit", [*ASK, "--against", ""], 1, "tokenises to nothing"),
    "keep what is no role": ("credit", [*ASK, "--keep", "banana"], 1, "no role 'banana'"),
    "word below 0": ("credit", [*ASK, "--word", "-1"], 2, "--word"),
    "no such substrate": ("faithfulness", [*ASK, "--substrate", "fog"], 1, "--substrate fog: there are tokens, mean"),
    "a substrate twice": ("faithfulness", [*ASK, *["--substrate", "blur"] * 2], 1, "names one twice"),
    "no such map": ("faithfulness", [*ASK, "--method", "shaply"], 1, "did you mean 'shapley'"),
    "no kind of curves": ("faithfulness", [*ASK, "--out", "{}/a.json"], 1, "does not end like"),
    "a word of nothing": ("credit", [*ASK, "--word", "1"], 2, "--word says which word --against is about"),
    "layers of no attention": (
        *(
            "heatmap",
            [*ASK, "--out", "{}/a.png", "--method", "attention", "--parameter", "layers=[]"],
            1,
            "one or more",
        ),
    ),
    "a blank about nothing": (
        "heatmap",
        [*ASK, "--out", "{}/a.png", "--method", "relative_attention", "--parameter", "generic= "],
        1,
        "a blank is none",
    ),
    "two words for a difference": (
        *("credit", [*ASK, "--value", "difference", "--against", "Red", "--against", "Blue"], 2, "give one"),
    ),
    "positions of no role": ("lens", [*ASK, "--role", "banana"], 1, "no role 'banana'"),
    "blank foil of direct": ("direct", [*ASK, "--against", " "], 1, "tokenises to nothing"),
    "blank foil of a map": ("heatmap", [*ASK, "--out", "{}/a.png", "--against", " "], 1, "tokenises to nothing"),
    "no such method": ("heatmap", [*ASK, "--out", "{}/a.png", "--method", "shaply"], 1, "did you mean 'shapley'"),
    "no parameter of it": ("heatmap", [*ASK, "--out", "{}/a.png", "--parameter", "pairs=2"], 1, "no parameter 'pairs'"),
    "no parameter": ("heatmap", [*ASK, "--out", "{}/a.png", "--parameter", "pairs"], 1, "is name=value"),
    "no kind of picture": ("heatmap", [*ASK, "--out", "{}/where.tiff2"], 1, ".pdf"),
    "no directory": ("heatmap", [*ASK, "--out", "{}/no/a.png"], 1, "there is no directory"),
    "a directory in its place": ("heatmap", [*ASK, "--out", "{}/.png"], 1, ".png"),
    "a long name": ("heatmap", [*ASK, "--out", f"{{}}/{LONG}.png"], 1, "File name too long"),
    "no kind of table": ("credit", [*ASK, "--frame", "{}/t.xls"], 1, ".parquet"),
    "a table that is there": ("credit", [*ASK, "--frame", "{}/t.csv"], 1, "exists"),
    "a table nowhere": ("lens", [*ASK, "--frame", "{}/no/t.csv"], 1, "there is no directory"),
    "a long directory": ("diagnose", [*ASK, "--out", f"{{}}/{LONG}"], 1, "File name too long"),
    "a directory under a file": ("diagnose", [*ASK, "--out", "{}/t.csv/out"], 1, "Not a directory"),
    "a long model": ("contrast", [*ASK, "--model", LONG], 1, "no model is called"),
    "blank word of a lens": ("lens", [*ASK, "--target", ""], 1, "tokenises to nothing"),
    "blank word of direct": ("direct", [*ASK, "--target", ""], 1, "tokenises to nothing"),
    "no way to split": ("credit", [*ASK, "--players", "words"], 1, "no way to split; there are ['roles', 'images'"),
    "split by nothing": ("credit", [*ASK, "--players", ""], 1, "'' is no way to split"),
    "sentences of nothing": ("credit", [*ASK, "--players", "sentences"], 1, "give --context"),
    "keep what is no player": ("credit", [*ASK, "--players", "images", "--keep", "imgae"], 1, "no role 'imgae'"),
    "keep a player of another split": (
        *("credit", [*ASK, "--players", "images", "--keep", "sentence 0"], 1, "no role 'sentence 0'"),
    ),
    "a map over its picture": ("heatmap", [*ASK, "--out", "{}/banana.png", "--force"], 1, "that this command reads"),
    "both ways": ("credit", [*ASK, "--table", "{}/t.csv"], 2, "in the place of"),
}


def test_an_image_without_a_name(run, unopened):
    status, _, err = run("contrast", "--image", "", *ASK)
    assert status == 2 and "--image" in err and "it is empty; give a path or an address" in err


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_the_model_is_opened(run, picture, tmp_path, case, request):
    command, given, status, said = MISTAKES[case]
    if case != "a long model":  # which only opening it can tell
        request.getfixturevalue("unopened")
    (tmp_path / "t.csv").write_text("image,question\n")
    found, out, err = run(command, "--image", picture, *(option.format(tmp_path) for option in given))
    assert (found, out) == (status, "") and said in " ".join(err.replace("│", " ").split()), err
    assert status == 2 or one_line(err)


PROBE_MISTAKES = {
    "seed below 0": (["--seed", "-1"], 2, "--seed"),
    "a seed that numpy does not take": (["--seed", str(2**40)], 2, "--seed"),
    "a seed that inner folds do not take": (["--seed", str(2**32 - 1)], 2, "--seed"),
    "permutations below 0": (["--permutations", "-1"], 2, "--permutations"),
    "one fold": (["--folds", "1"], 2, "--folds"),
    "features among results": (["--store", "{}/out/s"], 2, "one inside the other"),
    "results among features": (["--store", "{}"], 2, "one inside the other"),
    "features in a file": (["--store", "{}/t.csv"], 1, "is a file"),
    "features among other things": (["--store", "{}/thesis"], 1, "holds no features"),
}


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("case", PROBE_MISTAKES)
def test_mistakes_of_a_probe_are_found_before_the_model_is_opened(run, picture, tmp_path, case):
    given, status, said = PROBE_MISTAKES[case]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    (tmp_path / "t.csv").write_text(f"image,question,label\n{picture.name},What?,a\n{picture.name},Who?,b\n")
    told = [option.format(tmp_path) for option in given]
    found, out, err = run("probe", tmp_path / "t.csv", "--group", "question", *told, "--out", tmp_path / "out")
    assert (found, out) == (status, "") and said in " ".join(err.replace("│", " ").split()), err


ROWS = [(f"{n // 2}.png", n % 2, "ab"[n % 2], n // 2) for n in range(12)]  # six pictures, two rows of each
TOLD_BY_THE_TABLE = {
    "the label is the group": (["--label", "image", "--folds", "2"], "fall into fold 0, since groups stay whole"),
    "as a number": (["--label", "number", "--group", "number", "--folds", "2"], "since groups stay whole"),
    "a class of one": (["--label", "rare"], "class 'one' has only 1 examples"),
    "one class": (["--label", "same"], "a probe needs at least two classes"),
    "one group": (["--group", "same"], "of one group"),
    "points on a line": (["--label", "number", "--label", "equal"], "of output 1 are equal"),
    "a point of one column": (["--label", "number", "--label", "number"], "names a column twice"),
    "points of texts": (["--label", "number", "--label", "letter"], "'letter' holds no numbers"),
    "too few for inner folds": (["--label", "few", "--group", "question", "--folds", "2"], "give one l2"),
    "an empty type": (["--label", "letter", "--type", "sparse"], "'sparse' is empty in row 2"),
}


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("case", TOLD_BY_THE_TABLE)
def test_what_the_table_tells_is_found_before_the_model_is_opened(run, tmp_path, case):
    given, said = TOLD_BY_THE_TABLE[case]
    frame = pd.DataFrame(ROWS, columns=["image", "label", "letter", "number"])
    frame["rare"], frame["few"] = ["one", *["many"] * 11], ["few"] * 2 + ["many"] * 10
    frame["question"], frame["same"] = [f"What {n}?" for n in range(12)], "same"
    frame["equal"], frame["sparse"] = 3, ["a", None, *"ab" * 5]
    frame.to_csv(tmp_path / "t.csv", index=False)
    for name in set(frame["image"]):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    status, out, err = run("probe", tmp_path / "t.csv", *given, "--out", tmp_path / "out")
    assert (status, out) == (1, "") and said in err and one_line(err), err


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("command", ["diagnose", "heatmap"])
def test_disks_that_take_nothing(run, picture, tmp_path, monkeypatch, number, command):
    def refused(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(placing.tempfile, "TemporaryFile", refused)
    status, _, err = run(command, "--image", picture, *ASK, "--out", tmp_path / "a.png")
    assert status == 1 and one_line(err) and os.strerror(number) in err


BAD_TABLES = {
    "a list": '{"image": "banana.png", "question": "What?", "label": ["a"]}',
    "an object": '{"image": {"a": 1}, "question": "What?"}',
    "depth": '{"image": ' + "[" * 100_000,
    "no JSON": "{",
}


@pytest.mark.usefixtures("unopened", "picture")
@pytest.mark.parametrize("case", BAD_TABLES)
@pytest.mark.parametrize("command", ["probe", "contrast"])
def test_tables_that_hold_what_no_cell_can(run, tmp_path, case, command):
    table = tmp_path / "t.jsonl"
    table.write_text(BAD_TABLES[case])
    told = ["probe", table, "--out", tmp_path / "out"] if command == "probe" else ["contrast", "--table", table]
    status, out, err = run(*told)
    assert (status, out) == (1, "") and one_line(err) and "line 1" in err, err


WRITTEN = {
    # command, where the picture and the table stand, what is written over one of them
    "a frame over its table": ("contrast", "banana.png", "t.csv", ["--frame", "{}/t.csv"]),
    "a page over its table": ("diagnose", "banana.png", "out/tokens.csv", ["--out", "{}/out"]),
    "a page over its picture": ("diagnose", "out/heatmaps.png", "t.csv", ["--out", "{}/out"]),
    "probes over their table": ("probe", "banana.png", "out/probes.csv", ["--out", "{}/out", "--group", "question"]),
    "probes over their picture": ("probe", "out/probes.png", "t.csv", ["--out", "{}/out", "--group", "question"]),
}


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("case", WRITTEN)
def test_nothing_is_written_over_what_is_read(run, picture, tmp_path, case):
    """Not with --force either: that is for files of ours."""
    command, image, name, told = WRITTEN[case]
    (tmp_path / "out").mkdir()
    picture.replace(tmp_path / image)
    table = tmp_path / name
    table.write_text("image,question,label\n" + "".join(f"{tmp_path / image},Q{n}?,{'ab'[n % 2]}\n" for n in range(12)))
    before = (tmp_path / image).read_bytes(), table.read_bytes()
    given = [table] if command == "probe" else ["--table", table]
    status, out, err = run(command, *given, *(option.format(tmp_path) for option in told), "--force")
    assert (status, out) == (1, "") and one_line(err) and "that this command reads" in err, err
    assert before == ((tmp_path / image).read_bytes(), table.read_bytes())


BAD_ROWS = {"blank answer": ("banana.png, ", "tokenises to nothing"), "no picture": ("text.png,Red", "text.png")}


@pytest.mark.usefixtures("unopened", "picture")
@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("command", ["probe", "contrast", "diagnose"])
def test_a_bad_row_is_found_before_the_model_is_opened(run, tmp_path, case, command):
    row, said = BAD_ROWS[case]
    (tmp_path / "text.png").write_text("no picture")
    table = tmp_path / "t.csv"
    good = "".join(f"banana.png,Red,Q{n}?,{'ab'[n % 2]}\n" for n in range(12))
    table.write_text(f"image,answer,question,label\n{good}{row},What?,a\n")
    told = [table, "--group", "question"] if command == "probe" else ["--table", table]
    where = [] if command == "contrast" else ["--out", tmp_path / "out"]
    status, out, err = run(command, *told, *where)
    assert (status, out) == (1, "") and one_line(err) and "row 13: " in err and said in err, err


@pytest.mark.usefixtures("picture")
@pytest.mark.parametrize("command", ["contrast", "diagnose"])
def test_what_was_computed_before_an_error_is_written(run, tmp_path, monkeypatch, command):
    """The last row fails, in a way that nothing but the model can tell."""
    vlm, asked = li.wrap(tiny_llava()), []

    def found(*_, **__):
        asked.append(1)
        if len(asked) == 3:
            raise InputError("it fails")
        return made() if command == "diagnose" else made().contrast

    monkeypatch.setitem(vars(li), "load", lambda name, **options: vlm)
    monkeypatch.setitem(vars(li), command, found)
    monkeypatch.setattr(options, "example", lambda *_, **__: tiny_inputs(vlm))
    (tmp_path / "t.csv").write_text("image,question,answer\n" + "banana.png,What?,Red\n" * 4)
    told = ["--frame", tmp_path / "f.csv", *(["--out", tmp_path / "out"] if command == "diagnose" else [])]
    status, _, err = run(command, "--table", tmp_path / "t.csv", *told)
    assert status == 1 and one_line(err) and err.endswith("t.csv, row 3: it fails\n"), err
    assert set(pd.read_csv(tmp_path / "f.csv")["table_row"]) == {1, 2}
    assert command == "contrast" or len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.usefixtures("picture")
def test_an_error_of_a_probe_names_its_row(run, tmp_path, monkeypatch):
    vlm = li.wrap(tiny_llava())  # without a processor, which `prepare` says
    monkeypatch.setitem(vars(li), "load", lambda name, **options: vlm)
    table = tmp_path / "t.csv"
    table.write_text("image,question,label\n" + "".join(f"banana.png,Q{n}?,{'ab'[n % 2]}\n" for n in range(12)))
    status, _, err = run("probe", table, "--group", "question", "--out", tmp_path / "out")
    assert status == 1 and one_line(err) and f"{table}, row 1: " in err


def test_a_device_that_is_not_there(run, picture):
    status, _, err = run("contrast", "--image", picture, *ASK, "--device", "cuda:99")
    assert status == 1 and one_line(err) and "no device 'cuda:99' here; there are cpu" in err


@pytest.mark.usefixtures("picture")
def test_an_error_in_a_table_names_its_row(run, tmp_path, reference, monkeypatch):
    monkeypatch.setitem(vars(li), "load", lambda name, **options: reference)
    (tmp_path / "t.csv").write_text("image,question,answer\nbanana.png,What?,Red\nbanana.png, ,Red\n")
    status, out, err = run("contrast", "--table", tmp_path / "t.csv", "--json")
    assert status == 1 and one_line(err) and "'question' is empty in row 2" in err
    assert not out  # before anything is computed


def test_modules_where_the_user_is_are_not_run(tmp_path):
    """`python -m` puts the working directory in front of everything."""
    for name in ("typer", "rich", "torch", "random", "typing"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').write_text('')")
    told = {**os.environ, "PYTHONPATH": str(Path(li.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "lvlm_interp", "--version"], cwd=tmp_path, env=told, check=True)
    assert done.returncode == 0 and not (tmp_path / "ran").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        told = [sys.executable, "-m", "lvlm_interp", "--version"]
        done = subprocess.run(told, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and one_line(done.stderr) and "No space left" in done.stderr
