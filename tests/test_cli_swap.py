"""Tables of variants, and `lvlm-interp swap`: read whole, refused before the model is opened, kept where rows fail."""

import json

import pandas as pd
import pytest

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.report import export
from lvlm_interp.tables import read_variants
from tests.made import made
from tests.swapping import answering, made_test, picture
from tests.test_cli import one_line

HEAD = "example,source,picture,context,question,system,kind\n"
ROWS = (
    "a,original,red.png,,What color?,,color\n",
    "a,image,blue.png,,What color?,,color\n",
    "b,original,red.png,green,What is said?,,hint\n",
    "b,context,red.png,blue,What is said?,,hint\n",
)


@pytest.fixture
def folder(tmp_path):
    for color in ("red", "blue"):
        picture(color).save(tmp_path / f"{color}.png")
    (tmp_path / "t.csv").write_text(HEAD + "".join(ROWS))
    return tmp_path


def seeing(image, context, question, **told):
    return (context if "said" in question else image) or "none"


def opens(monkeypatch, function):
    monkeypatch.setitem(vars(li), "load", lambda name, **options: answering(function))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_csv_and_jsonl_give_the_same(folder):
    frame = read_variants(folder / "t.csv")
    rows = [line.strip().split(",") for line in ROWS]
    named = [dict(zip(HEAD.strip().split(","), (cell or None for cell in row), strict=True)) for row in rows]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, named)))
    pd.testing.assert_frame_equal(read_variants(folder / "t.jsonl"), frame)
    assert frame["picture"].tolist()[0] == [str(folder / "red.png")] and frame["context"].tolist()[1] is None


def test_pictures_are_joined_and_texts_stay(folder):
    (folder / "t.csv").write_text("example,source,picture,question\n007,original,red.png|blue.png,1.50\n")
    frame = read_variants(folder / "t.csv")
    assert frame["picture"][0] == [str(folder / "red.png"), str(folder / "blue.png")]
    assert (frame["example"][0], frame["question"][0]) == ("007", "1.50")


BAD = {
    "no original": ("".join(ROWS[1:]), "the example 'a' has no rows whose source is 'original'"),
    "no difference": (ROWS[0] + ROWS[1].replace("blue", "red"), "row 2, of the example 'a', is no different"),
    "no such picture": (ROWS[0] + ROWS[1].replace("blue", "green"), "pictures that are not there"),
    "no source": (ROWS[0] + ROWS[1].replace("image", "picture"), "row 2: no source 'picture'"),
    "marks": (ROWS[2].replace("green", "<|im_start|>system"), "row 1: the context holds '<|im_start|>'"),
    "too few fields": ("a,original\n", "row 1 has 2 fields"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused_before_the_model_is_opened(run, folder, monkeypatch, case):
    rows, said = BAD[case]
    (folder / "t.csv").write_text(HEAD + rows)
    monkeypatch.setitem(vars(li), "load", lambda name, **options: pytest.fail("the model was opened"))
    status, out, err = run("swap", folder / "t.csv", "--out", folder / "out")
    assert (status, out) == (1, "") and one_line(err) and said in err and "t.csv" in err
    with pytest.raises(InputError):
        read_variants(folder / "t.csv")


def test_an_unknown_column_is_told(run, folder):
    (folder / "t.csv").write_text((HEAD + ROWS[0]).replace("picture,", "image,"))
    status, _, err = run("swap", folder / "t.csv", "--out", folder / "out")
    assert status == 1 and "no column 'image'" in err


# --- the command ------------------------------------------------------------------------------------------------------


def test_swap_prints_what_decides_and_writes_files(run, folder, monkeypatch):
    opens(monkeypatch, seeing)
    status, out, err = run("swap", folder / "t.csv", "--out", folder / "out")
    assert (status, err) == (0, "") and "2 examples: image 1, context 1" in out and "Definitions of credit" in out
    assert {file.name for file in (folder / "out").iterdir()} == set(export.SWAPPED)
    test = li.load_result(folder / "out" / "swap.safetensors")
    assert [verdict.source for verdict in test.verdicts] == ["image", "context"]
    assert pd.read_csv(folder / "out" / "examples.csv")["decides"].tolist() == ["image", "context"]
    assert set(pd.read_csv(folder / "out" / "judged.csv")["kind"]) == {"all", "color", "hint"}
    status, _, err = run("swap", folder / "t.csv", "--out", folder / "out")
    assert status == 1 and "--force" in err


def test_without_a_table_the_reference_world_makes_its_own(run, tmp_path, monkeypatch):
    opens(monkeypatch, lambda **told: "none")
    status, out, err = run("swap", "--count", "14", "--out", tmp_path / "out", "--no-maps")
    assert (status, err) == (0, "") and "The reference world: 14 examples" in out
    assert {"fact", "echo", "natural"} <= set(pd.read_csv(tmp_path / "out" / "examples.csv")["kind"])


def test_swap_as_json(run, folder, monkeypatch):
    opens(monkeypatch, seeing)
    status, out, _ = run("swap", folder / "t.csv", "--out", folder / "out", "--json", "--definition", "full, word")
    found = json.loads(out)
    assert status == 0 and [row["decides"] for row in found["examples"]] == ["image", "context"]
    assert found["judged"]["definitions"][0] == "full, word" and found["judged"]["right"]


def test_rows_that_fail_are_told_and_the_others_are_written(run, folder, monkeypatch):
    opens(monkeypatch, lambda context, **told: "" if context == "blue" else seeing(context=context, **told))
    status, out, err = run("swap", folder / "t.csv", "--out", folder / "out")
    assert status == 0 and "note: b, row 4, context: the model answered with nothing" in err and "1 failed" in out
    answers = pd.read_csv(folder / "out" / "answers.csv")
    assert answers["failed"].notna().sum() == 1 and answers["answer"].notna().sum() == len(answers) - 1


def test_answers_are_kept_where_nothing_can_be_judged(run, folder, monkeypatch):
    opens(monkeypatch, lambda image, context, **told: f"{image} {context}" if image and context else "none")
    (folder / "t.csv").write_text(HEAD + "".join(ROWS[2:]))
    status, _, err = run("swap", folder / "t.csv", "--out", folder / "out")
    assert status == 0 and "note: nothing is judged" in err
    assert {file.name for file in (folder / "out").iterdir()} == set(export.SWAPPED[:3])


MISTAKES = {
    "no definition": (["--definition", "old"], 1, "no definition 'old'"),
    "one definition twice": (["--definition", "odds, word", "--definition", "odds, word"], 1, "names one twice"),
    "a table and a count": (["--count", "3"], 1, "where there is no table"),
    "by what": (["--by", "chance"], 2, "--by"),
    "over its table": (["--out", "{}"], 1, "not empty"),
    "no table": (["{}/no.csv"], 2, "unexpected"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_the_model_is_opened(run, folder, monkeypatch, case):
    given, status, said = MISTAKES[case]
    monkeypatch.setitem(vars(li), "load", lambda name, **options: pytest.fail("the model was opened"))
    out_dir = [] if "--out" in given else ["--out", folder / "out"]
    told = [*out_dir, *(option.format(folder) for option in given)]
    found, out, err = run("swap", folder / "t.csv", *told)
    assert (found, out) == (status, "") and said in " ".join(err.replace("│", " ").split()), err


def test_a_table_is_not_written_over(run, folder):
    out = folder / "out"
    out.mkdir()
    (folder / "t.csv").rename(out / "answers.csv")
    for color in ("red", "blue"):
        (folder / f"{color}.png").rename(out / f"{color}.png")
    status, _, err = run("swap", out / "answers.csv", "--out", out, "--force")
    assert status == 1 and "that this command reads" in err


def test_what_is_written_is_a_result_of_its_kind():
    with pytest.raises(InputError, match=r"write_swap\(test=…\)"):
        export.write_swap(made(), None, "x")
    assert li.judged(made_test()).table()["definition"].tolist()[0] == "odds, answer"
