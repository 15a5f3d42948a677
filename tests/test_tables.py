"""A table of examples is read whole, or refused with what is wrong."""

import json
import warnings

import pandas as pd
import pytest
from PIL import Image

from lvlm_interp.errors import InputError, LvlmInterpWarning
from lvlm_interp.tables import read_examples


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


def test_csv_and_jsonl_give_the_same(folder):
    (folder / "t.csv").write_text("image,question,answer,label\na.png,What?,,yes\na.png,Where?,There,no\n")
    rows = ['{"image": "a.png", "question": "What?", "answer": null, "label": "yes"}']
    rows.append('{"image": "a.png", "question": "Where?", "answer": "There", "label": "no"}')
    (folder / "t.jsonl").write_text("\n".join(rows))
    csv, jsonl = read_examples(folder / "t.csv"), read_examples(folder / "t.jsonl")
    for frame in (csv, jsonl):
        assert frame["image"].tolist() == [str(folder / "a.png")] * 2
        assert frame["answer"].tolist() == [None, "There"] and frame["label"].tolist() == ["yes", "no"]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_texts_are_taken_letter_for_letter(folder, name):
    texts = ["007", "None", "NA", "3", "1.50", "true", None]
    csv = "image,question,answer,label\n" + "".join(f"a.png,{i},{text or ''},{i}\n" for i, text in enumerate(texts))
    rows = [{"image": "a.png", "question": str(i), "answer": text, "label": i} for i, text in enumerate(texts)]
    (folder / name).write_text(csv if name == "t.csv" else "\n".join(map(json.dumps, rows)))
    frame = read_examples(folder / name)
    assert frame["answer"].tolist() == texts and frame["question"].tolist() == list("0123456")
    assert frame["label"].dtype == int


def test_numbers_of_json_are_texts_where_texts_belong(folder):
    rows = [{"image": "a.png", "question": 1, "answer": 3}, {"image": "a.png", "question": 2, "answer": None}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame = read_examples(folder / "t.jsonl")
    assert frame["answer"].tolist() == ["3", None] and frame["question"].tolist() == ["1", "2"]


def test_a_column_that_is_nearly_one_of_ours_is_told(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "t.csv").write_text("image,question,anwser\na.png,What?,A cat.\n")
    with pytest.warns(LvlmInterpWarning, match="'anwser' is not read as 'answer'"):
        assert "answer" not in read_examples(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("image,question,answer,answers\na.png,What?,A,B\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_examples(tmp_path / "t.csv")) == ["image", "question", "answer", "answers"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", "a .csv or a .jsonl"),
        ("none.csv", None, "no table at"),
        ("t.csv", "", "cannot be read"),
        ("t.jsonl", "{broken", "cannot be read"),
        ("t.jsonl", "", "cannot be read: it is empty"),
        ("t.jsonl", "1", "cannot be read: line 1 is no object"),
        ("t.jsonl", "\n\n{", "cannot be read: line 3 is no JSON"),
        ("t.csv", "image,label\na.png,yes\n", "no column 'question'; it has .*label"),
        ("t.csv", "image,question\n", "holds no examples"),
        ("t.csv", "image,question, answer\na.png,What?,A\n", "' answer' is not read as 'answer', which is written so"),
        ("t.csv", "image,question,Context\na.png,What?,A\n", "'Context' is not read as 'context'"),
        ("t.csv", "image,question\na.png,What?\na.png,\n", "'question' is empty in row 2"),
        ("t.csv", "image,question\na.png,What?\nb.png,What?\n", r"not there: .*b.png \(row 2\)"),
        ("t.csv", "question,answer,image\nWhat?,Yes,it is,a.png\n", "row 1 has 4 fields, but there are 3 columns"),
        ("t.csv", "image,question,label\na.png,What?,1\na.png,What?\n", "row 2 has 2 fields"),
        ("t.csv", "image,question,image\na.png,What?,a.png\n", "two columns 'image'"),
        ("t.csv", 'image,question\na.png,"What?\n', "cannot be read"),
        ("t.csv", "image,question\na.png,  \n", "'question' is empty in row 1"),
        ("t.jsonl", '{"image": "a.png", "question": ["What?"]}', "line 1: 'question' holds a list"),
        ("t.jsonl", '{"image": "a.png", "question": ' + "[" * 100_000, "line 1 is no JSON"),
        ("t.csv", f"image,question\n{'a' * 300}.png,What?\n", "not there"),
        ("t.csv", f"image,question\na.png,What?\na.png,{'a' * 140_000}\n", r"t.csv cannot be read: row 2: .*131072"),
        ("t.csv", f"image,{'a' * 140_000}\n", r"t.csv cannot be read: the head: .*131072"),
        ("t.csv", 'image,question\n\na.png,What?\na.png,"What?\n', r"t.csv cannot be read: row 2: .*quote"),
        ("t.csv", b"image,question\na.png,What?\na.png,caf\xe9\n", r"line 3 is no text in UTF-8"),
        ("t.jsonl", b'{"image": "a.png", "question": "caf\xe9"}', r"line 1 is no text in UTF-8"),
        (
            "t.jsonl",
            '\n{"image": "a.png", "question": "a\\ud800"}',
            r"read: line 2: 'question' .*d800",
        ),
        ("t.jsonl", '{"image": "a.png", "question": "a", "\\udc00": 1}', r"line 1: .*half of a character"),
        ("t.jsonl", '{"image": "a.png", "question": "a", "label": 1, "label": 2}', "line 1: the key 'label' .*twice"),
        ("t.jsonl", '{"image": "a.png", "question": "a", "a": {"b": 1, "b": 2}}', "line 1: the key 'b' .*twice"),
    ],
)
def test_what_cannot_be_read_is_refused(folder, name, text, message):
    if text is not None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_examples(folder / name)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.png", "data:image/png;base64,aGk//w=="])
def test_an_address_of_a_picture_stays_as_it_is(folder, address):
    """As `--image` takes it; whether something is there is seen when it is opened."""
    (folder / "t.csv").write_text(f'image,question\na.png,What?\n"{address}",What?\n')
    assert read_examples(folder / "t.csv")["image"].tolist() == [str(folder / "a.png"), address]


BEYOND, NEXT = "9007199254740993", "9007199254740992"  # 2⁵³ + 1, which a float is not, and what it would be
DIGITS = "7" * 5000


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ([BEYOND, NEXT], [int(BEYOND), int(NEXT)]),
        ([BEYOND, NEXT, ""], [BEYOND, NEXT, None]),
        ([BEYOND, NEXT + ".0"], [BEYOND, NEXT + ".0"]),
        ([BEYOND, "0.5"], [BEYOND, "0.5"]),
        (["-" + BEYOND, ""], ["-" + BEYOND, None]),
        ([NEXT, ""], [float(NEXT), None]),
        (["7", "", "0.5"], [7.0, None, 0.5]),
        (["0.1234567890123456789", "0.1234567890123456788"], ["0.1234567890123456789", "0.1234567890123456788"]),
        (["0.1", "1e30"], [0.1, 1e30]),
        (["1" + "0" * 30, "1"], [10**30, 1]),
        ([DIGITS, "7"], [DIGITS, "7"]),
        (["1e400", "2"], ["1e400", "2"]),
        (["1e-400", "2"], ["1e-400", "2"]),
        (["0.0", "0.5"], [0.0, 0.5]),
        (["7", "7.0"], ["7", "7.0"]),
    ],
)
def test_no_number_becomes_another(folder, name, cells, values):
    """As floats, which empty cells and decimals make of a column, whole numbers round, and two would be one."""
    csv = "image,question,id\n" + "".join(f"a.png,What?,{cell}\n" for cell in cells)
    ids = [f', "id": {cell}' if cell else "" for cell in cells]
    rows = [f'{{"image": "a.png", "question": "What?"{one}}}' for one in ids]
    (folder / name).write_text(csv if name == "t.csv" else "\n".join(rows))
    found = read_examples(folder / name)["id"]
    assert [None if pd.isna(value) else value for value in found] == values
    assert all(type(one) is type(two) or two is None for one, two in zip(found.tolist(), values, strict=True))


def test_a_large_number_beside_other_kinds_is_exact(folder):
    ids = ["Infinity", BEYOND, '"a"', "true", "null"]
    for some in (ids[:2], ids):
        rows = [f'{{"image": "a.png", "question": "What?", "id": {one}}}' for one in some]
        (folder / "t.jsonl").write_text("\n".join(rows))
        assert read_examples(folder / "t.jsonl")["id"][1] == int(BEYOND)


def test_what_is_no_number_of_json_is_taken_letter_for_letter(folder):
    rows = ['"question": "What?", "n": 1', '"question": Infinity, "n": -Infinity', '"question": "What?", "n": NaN']
    (folder / "t.jsonl").write_text("\n".join(f'{{"image": "a.png", {row}}}' for row in rows))
    found = read_examples(folder / "t.jsonl")
    assert found["question"].tolist() == ["What?", "Infinity", "What?"]
    assert found["n"].tolist()[:2] == [1, "-Infinity"] and pd.isna(found["n"][2])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["007", "7"], ["007", "7"]),
        (["7", "7.0"], ["7", "7.0"]),
        (["1e400", "2"], ["1e400", "2"]),
        (["NA", "None", "nan"], ["NA", "None", "nan"]),
        (["True", "1"], ["True", "1"]),
        (["7", "-8"], [7, -8]),
        (["0.5", "0.50", "-2"], [0.5, 0.5, -2.0]),
        (["7.0", "8.0"], [7.0, 8.0]),
    ],
)
def test_labels_that_are_written_differently_stay_apart(folder, cells, values):
    rows = "".join(f"a.png,What?,{cell}\n" for cell in cells)
    (folder / "t.csv").write_text("image,question,label\n" + rows)
    assert read_examples(folder / "t.csv")["label"].tolist() == values


def test_every_field_is_a_text_of_its_own_column(folder):
    """The control: with a comma in quotes, the row that was one field too long is whole."""
    (folder / "t.csv").write_text('question,answer,image\nWhat?,"Yes, it is",a.png\n\n')
    frame = read_examples(folder / "t.csv")
    assert frame.to_dict("records") == [{"question": "What?", "answer": "Yes, it is", "image": str(folder / "a.png")}]


def test_answers_of_a_jsonl_are_as_json_writes_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": "x", "answer": answer} for answer in (True, False, "True", 1, 1.50)]
    (tmp_path / "t.JSONL").write_text("\n".join(map(json.dumps, lines)))
    assert read_examples(tmp_path / "t.JSONL")["answer"].tolist() == ["true", "false", "True", "1", "1.5"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_columns_that_something_else_parts_are_told(tmp_path, mark):
    (tmp_path / "t.csv").write_text(f"image{mark}question\na.png{mark}x\n")
    with pytest.raises(InputError, match="save it with commas"):
        read_examples(tmp_path / "t.csv")
