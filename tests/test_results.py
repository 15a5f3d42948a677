"""How results show themselves in a notebook, how they are kept in files, and that they say what they are of."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lvlm_interp as li
from lvlm_interp import results
from lvlm_interp.counterfactuals.contrast import Contrasts
from lvlm_interp.errors import InputError, MissingError, ModelError, OutputError
from lvlm_interp.inputs.called import digest, named_by
from lvlm_interp.inputs.view import ImageView
from lvlm_interp.model.capture import Captured
from lvlm_interp.opening.checks import Checked
from lvlm_interp.opening.conformance import Conformance
from lvlm_interp.report.saved import KINDS, load_result
from lvlm_interp.results import MOST_ROWS, Result, html
from tests.kinds import one_of_each
from tests.made import about, made, made_map
from tests.tiny import tiny_inputs, tiny_llava


def test_a_result_shows_its_table_escaped():
    shown = made_map(("<script>",), torch.ones)._repr_html_()
    assert "<table" in shown and "&lt;script&gt;" in shown and "<script>" not in shown and "1.000" in shown


@dataclass(frozen=True)
class Tabled(Result):
    rows: int

    def to_frame(self):
        return pd.DataFrame({"row": range(self.rows)})


def test_a_long_table_shows_its_ends():
    shown = Tabled(400, provenance=about("plain"))._repr_html_()
    assert MOST_ROWS < shown.count("<tr") < MOST_ROWS + 5


def test_a_result_without_a_table_leaves_it_to_its_repr():
    @dataclass(frozen=True)
    class Plain(Result):
        number: int

    assert Plain(1, provenance=about("plain"))._repr_html_() is None


def test_a_kind_of_result_that_is_registered_shows_itself_so():
    @dataclass(frozen=True)
    class Drawn(Result):
        number: int

    html.register(Drawn, lambda result: f"<b>{result.number}</b>")
    assert Drawn(1, provenance=about("drawn"))._repr_html_() == "<b>1</b>"


def test_a_loaded_diagnosis_shows_the_explorer(tmp_path):
    """Though nobody imports the explorer: it comes with the diagnosis."""
    path = made().save(tmp_path / "d.safetensors")
    code = "import sys, lvlm_interp as li; print(li.Diagnosis.load(sys.argv[1])._repr_html_())"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == made()._repr_html_().rstrip("\n") and "<svg" in done.stdout


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base(Result):
    number: Any


@dataclass(frozen=True)
class Deep(Base):
    """A kind two classes below `Result`."""

    more: Any = None


def saved(value, tmp_path):
    return load_result(Deep(value, provenance=about("deep")).save(tmp_path / "r.safetensors")).number


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 0.5, "é\n", (), (1, (2, "x")), [1, [2]], {"a": (1,), 2: [None]}, {"tensor": "x"}, {}),
        *({"kind": "Deep", "fields": {}}, float("inf")),
    ],
    ids=str,
)
def test_a_value_is_read_as_it_was_written(value, tmp_path):
    assert saved(value, tmp_path) == value and type(saved(value, tmp_path)) is type(value)


def test_tensors_are_read_wherever_they_stand(tmp_path):
    tensor = torch.arange(3, dtype=torch.int16)
    read = saved({"a": [tensor, Base(tensor * 2, provenance=about("base"))]}, tmp_path)
    assert torch.equal(read["a"][0], tensor) and read["a"][0].dtype == tensor.dtype
    assert type(read["a"][1]) is Base and torch.equal(read["a"][1].number, tensor * 2)


def test_tensors_whose_names_are_alike_are_kept_apart(tmp_path):
    value = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.ones(2), "1": torch.zeros(2)}
    read = saved(value, tmp_path)
    assert read["a.b"] == 0 and read["a"]["b"] == 1 and read[1].all() and not read["1"].any()


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.array([True, False]), np.array([3], np.int16)])
def test_arrays_are_read_as_tensors(array, tmp_path):
    read = saved({"a": array}, tmp_path)["a"]
    assert torch.equal(read, torch.tensor(array)) and read.numpy().dtype == array.dtype


def test_frames_are_read_as_frames(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": ["é", None], "c": [0.5, float("inf")]})
    one = Base(frame, provenance=about("base"))
    assert saved(frame, tmp_path).equals(frame) and Base.load(one.save(tmp_path / "f.safetensors")) == one
    assert one != Base(frame.assign(a=0), provenance=one.provenance)


INDEXES = [
    pd.Index(["x", "y"]),
    pd.Index([3, 5], name="kind"),
    pd.Index([0, 1], name="row"),
    pd.MultiIndex.from_tuples([("a", 0), ("b", 1)], names=["n", None]),
]


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_frames_keep_their_index(index, tmp_path):
    frame = pd.DataFrame({"a": [1, 2]}, index=index)
    read = saved(frame, tmp_path)
    assert read.equals(frame) and list(read.index.names) == list(index.names)


def test_arrays_of_texts_are_read_as_arrays(tmp_path):
    array = np.array([["a", "é"], ["", "nan"]])
    read = saved({"a": array}, tmp_path)["a"]
    assert isinstance(read, np.ndarray) and (read == array).all() and read.shape == (2, 2)
    one = Base(array, provenance=about("base"))
    assert one == Base(read, provenance=one.provenance) != Base(array[:1], provenance=one.provenance)


def test_numbers_of_numpy_are_numbers(tmp_path):
    assert saved((np.float32(0.5), np.int64(3), np.bool_(True)), tmp_path) == (0.5, 3, True)


def test_a_result_is_loaded_by_a_class_above_it_only(tmp_path):
    path = Deep(1, provenance=about("deep", list=[1], tuple=(2,))).save(tmp_path / "r.safetensors")
    assert Result.load(path) == Base.load(path) == Deep.load(path) == Deep(1, provenance=Deep.load(path).provenance)
    assert Deep.load(path).provenance.parameters == {"list": [1], "tuple": (2,)}
    with pytest.raises(OutputError, match="holds a Deep, not a Contrast"):
        li.Contrast.load(path)


def test_every_kind_that_a_user_can_name_is_known_where_files_are_opened():
    named = {getattr(li, name) for name in li.__all__}
    assert {kind for kind in named if isinstance(kind, type) and issubclass(kind, Result)} == set(KINDS)


def test_several_contrasts_are_one_result(tmp_path):
    each = {name: made().contrast for name in ("hidden", "blank")}
    read = load_result(Contrasts(each, provenance=about("contrast")).save(tmp_path / "c.safetensors"))
    assert list(read) == ["hidden", "blank"] and read.provenance.method == "contrast"
    assert read.get("blurr") is None
    with pytest.raises(MissingError, match=r"no contrast 'blurr': there are \['hidden', 'blank'\]"):
        read["blurr"]
    assert torch.equal(read["blank"].delta, each["blank"].delta) and read.table().equals(Contrasts.table(read))


def test_a_loaded_conformance_knows_whether_it_is_ok(tmp_path):
    rows = (Checked("parity", True, 0.0, 1.0, "", ""), Checked("leak", False, float("nan"), 1.0, "", ""))
    read = load_result(Conformance("llava", rows, provenance=about("check")).save(tmp_path / "c.safetensors"))
    assert not read.ok and read["parity"].ok and isinstance(read["leak"], Checked)


def damaged(path, **changes):
    """The same file with another header, as somebody may have written it."""
    with safe_open(str(path), "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header, kept = {**header, **changes}, {k: v for k, v in tensors.items() if changes.get("without") != k}
    save_file(kept, path, {**header, "digest": results._digest(header, kept)})


@pytest.mark.parametrize(
    "changes",
    [
        *({"value": "{"}, {"value": "[]"}, {"value": '{"kind": "os", "fields": {}}'}, {"without": "number"}),
        *({"value": '{"kind": "Deep", "fields": {"other": 1}}'}, {"value": "[" * 100_000}, {"layout": "1"}),
        *({"result": "Path"}, {"result": "Checked"}),
    ],
    ids=str,
)
def test_a_damaged_file_says_so(changes, tmp_path):
    path = Deep(torch.ones(2), provenance=about("deep")).save(tmp_path / "r.safetensors")
    damaged(path, **changes)
    with pytest.raises(OutputError, match=r"r\.safetensors"):
        load_result(path)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.uint16])
def test_numbers_that_torch_can_do_little_with_are_no_results(kind, tmp_path):
    """Neither written nor read: `min` and `print` of some fail."""
    with pytest.raises(OutputError, match=f"could not write.*'number' is {kind}"):
        Deep(torch.ones(2).to(kind), provenance=about("deep")).save(tmp_path / "r.safetensors")
    if kind is torch.uint16:  # an older safetensors cannot write it
        return
    path = Deep(torch.ones(2), provenance=about("deep")).save(tmp_path / "r.safetensors")
    with safe_open(str(path), "pt") as file:
        header = file.metadata()
    kept = {"number": torch.ones(2).to(kind)}
    save_file(kept, path, {**header, "digest": results._digest(header, kept)})
    with pytest.raises(OutputError, match=f"damaged.*'number' is {kind}"):
        load_result(path)


def test_parts_of_other_types_of_numbers_are_damaged(tmp_path):
    """What their class computes of them fails with an error of torch's own."""
    path = made().contrast.save(tmp_path / "r.safetensors")
    with safe_open(str(path), "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["delta"] = tensors["delta"].double()
    save_file(tensors, path, {**header, "digest": results._digest(header, tensors)})
    with pytest.raises(OutputError, match="damaged"):
        load_result(path)


def test_texts_that_would_fill_the_memory_are_refused(tmp_path):
    """One long text makes all of an array of numpy as wide."""
    path = Deep(np.array(["a", "b"]), provenance=about("deep")).save(tmp_path / "r.safetensors")
    with safe_open(str(path), "pt") as file:
        value = json.loads(file.metadata()["value"])
    texts = value["fields"]["number"]
    texts |= {"texts": ["a" * 10**6, *["b"] * 10**4], "shape": [10**4 + 1]}
    damaged(path, value=json.dumps(value))
    with pytest.raises(OutputError, match="padded to the longest"):
        load_result(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_bit_that_turned_is_noticed(share, tmp_path):
    path = made().save(tmp_path / "r.safetensors")
    whole = path.read_bytes()
    at = int(share * len(whole))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(OutputError, match=r"r\.safetensors"):
        load_result(path)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = Deep(1, provenance=about("deep")).save(tmp_path / "r.safetensors")
    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OutputError, match="could not write"):
        Deep(2, provenance=about("deep")).save(path)
    assert load_result(path).number == 1 and os.listdir(tmp_path) == ["r.safetensors"]


def test_a_file_is_written_as_others_are(tmp_path):
    """With the rights that the user gives to new files, and behind a link."""
    (tmp_path / "plain").touch()
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "r.safetensors")
    Deep(1, provenance=about("deep")).save(link)
    assert link.is_symlink() and load_result(link).number == 1
    assert (tmp_path / "r.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["r.json", "r.png", "r"])
def test_a_file_is_named_as_what_it_is(name, tmp_path):
    with pytest.raises(OutputError, match=r"saved as \.safetensors"):
        Deep(1, provenance=about("deep")).save(tmp_path / name)
    assert not os.listdir(tmp_path)


def broken(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    raise OSError("disk full")


# --- provenance -------------------------------------------------------------------------------------------------------


def test_a_result_says_of_which_model_example_and_seed_it_is():
    vlm = li.wrap(tiny_llava(), name="mine")
    vlm.revision = "abc"
    x, y = tiny_inputs(vlm), tiny_inputs(vlm, seed=2)
    red, blue = (li.counterfactuals.noise(step) for step in (10, 20))
    found = li.contrast(vlm, x, [red, dataclasses.replace(blue, name="more")], seed=3)
    told = found["noise"].provenance
    assert (told.model, told.revision, told.seed, told.weights) == ("mine", "abc", 3, vlm.fingerprint)
    assert told.example == found.provenance.example != li.contrast(vlm, y).provenance.example
    others = {one.provenance.parameters["other_example"] for one in found.values()}
    assert len(others) == 2 and told.example not in others


@pytest.mark.parametrize("method", [li.contrast, li.credit, li.attribute, li.direct, li.lens])
def test_every_method_names_its_example(method):
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    x = dataclasses.replace(x, images=(gridded(x),))
    assert method(vlm, x).provenance.example == named_by(x)


def test_scores_are_a_result(tmp_path):
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    scores = li.score(vlm, x, torch.stack([x.everything, x.hidden("image")]))
    read = load_result(scores.save(tmp_path / "s.safetensors"))
    assert torch.equal(read.logprob, scores.logprob) and read.provenance.example == named_by(x)
    assert len(read.to_frame()) == 2 * len(x.answer_ids)
    with pytest.raises(InputError, match="from a file"):
        read.logits()


def test_a_capture_is_saved_with_what_it_is_of(tmp_path):
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    capture = vlm.capture(x, ["blocks.*.hook_resid_post"], positions=[3, 5], edits={"blocks.0.hook_resid_pre": abs})
    read = load_result(capture.save(tmp_path / "c.safetensors"))
    assert {name: value.tolist() for name, value in read.items()} == {n: v.tolist() for n, v in capture.items()}
    told = read.provenance
    assert (told.method, told.example, told.edits) == ("capture", named_by(x), ("blocks.0.hook_resid_pre",))
    assert told.parameters["positions"] == [3, 5] and told.weights == vlm.fingerprint
    later = vlm.capture(x, "blocks.0.*")
    vlm.model.get_input_embeddings().weight.data = vlm.model.get_input_embeddings().weight.data * 2
    with pytest.raises(ModelError, match="changed since this capture began"):
        later.save(tmp_path / "d.safetensors")


def gridded(x):
    """A view of its image tokens as a grid of two by two."""
    return ImageView(x.where("image").nonzero().flatten(), cells=torch.arange(4).view(2, 2))


def test_keys_that_would_be_one_are_refused(tmp_path):
    with pytest.raises(OutputError, match="would be one"):
        saved({(1,): 1, "(1,)": 2}, tmp_path)
    scores = one_of_each()["Scores"]
    assert load_result(scores.save(tmp_path / "s.safetensors")) == scores


def test_roles_are_part_of_an_example():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    given = dict(x.model_inputs)
    ids = given.pop("input_ids")
    others = ["context" if role == "question" else role for role in x.roles]
    y = vlm.inputs(ids, x.answer_start, others, **given)
    assert digest(x) != digest(y) and digest(x) == digest(vlm.inputs(ids, x.answer_start, x.roles, **given))


def test_missing_cells_stay_missing(tmp_path):
    frame = pd.DataFrame({"a": pd.array([None, 1], "Int64"), "b": pd.to_datetime(["2020-01-01", None])})
    assert saved(frame, tmp_path).isna().to_numpy().tolist() == frame.isna().to_numpy().tolist()


def test_columns_that_share_a_name_are_refused(tmp_path):
    frame = pd.DataFrame([[1, 2]], columns=[1, "1"])
    with pytest.raises(OutputError, match="share a name"):
        saved(frame, tmp_path)


@pytest.mark.parametrize("array", [np.array(["x", 1, None], object), np.array([], "<U3"), np.array([["a"], ["b"]])])
def test_arrays_of_texts_keep_their_kind(array, tmp_path):
    read = saved({"a": array}, tmp_path)["a"]
    assert read.dtype.kind == array.dtype.kind and read.shape == array.shape and read.tolist() == array.tolist()


def test_doubles_keep_their_digits():
    numbers = torch.tensor([0.05, 16777217.0, 1700000001.0], dtype=torch.float64)
    held = {"s": numbers, "h": numbers.to(torch.bfloat16), "n": torch.tensor([True])}
    told = Captured(held, provenance=about("c")).to_dict()["activations"]
    assert told["s"] == numbers.tolist() and told["h"][0] == pytest.approx(0.05, rel=1e-2) and told["n"] == [True]


def test_weights_are_not_written_over(tmp_path):
    """A file of tensors that holds no result is somebody's; a result may take another's place."""
    weights = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, weights, metadata={"format": "pt"})
    result = made().credit
    with pytest.raises(OutputError, match="no result, weights maybe"):
        result.save(weights)
    assert result.save(result.save(tmp_path / "mine.safetensors")).is_file()
    with pytest.raises(OutputError, match="could not read"):
        li.load_result("\ud800.safetensors")
