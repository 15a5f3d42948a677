"""Commands that intervene, and the one that watches an answer while it is written: they mirror the API."""

import json

import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp.cli.places import layers_of, positions_of
from lvlm_interp.errors import InputError, VisibilityError
from lvlm_interp.reference import make_scene
from tests.test_cli import ASK, one_line


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "banana.png"
    make_scene(2, objects=["banana"], colors=["purple"]).image.save(path)
    return path


@pytest.fixture
def loaded(reference, monkeypatch):
    """The commands find the reference model open already."""
    monkeypatch.setitem(vars(li), "load", lambda name, **options: reference)


@pytest.mark.parametrize(
    ("text", "layers"), [(None, None), ("12", [12]), ("8-10", [8, 9, 10]), ("0-2, 20", [0, 1, 2, 20]), ("3-3", [3])]
)
def test_layers_as_text(text, layers):
    assert layers_of(text) == layers


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-3", "1-2-3"])
def test_what_is_no_list_of_layers(text):
    with pytest.raises(InputError, match="--layers is numbers"):
        layers_of(text)


def test_positions_as_text():
    assert positions_of("--rows", ["last"]) == "last" and positions_of("--rows", ["image"]) == ["image"]
    with pytest.raises(InputError, match="stands alone"):
        positions_of("--rows", ["last", "image"])
    with pytest.raises(VisibilityError, match="no role 'imgae'"):
        positions_of("--keys", ["imgae"])


def test_a_route_is_cut(run, loaded, picture, tmp_path):
    told = ["--image", picture, *ASK, "--answer", "Purple."]
    status, printed, _ = run("knockout", *told, "--layers", "0-29", "--against", "Yellow")
    assert status == 0 and "Purple" in printed and "certified" in printed
    status, printed, _ = run("knockout", *told, "--rows", "question", "--rows", "template", "--json")
    found = json.loads(printed)
    assert status == 0 and found["value"] == "logprob" and all(one["holds"] for one in found["certificates"])
    assert found["values"][1][0] < found["values"][0][0] - 1
    out = tmp_path / "layers.svg"
    status, printed, _ = run("knockout", *told, "--window", 15, "--out", out, "--frame", tmp_path / "all.csv")
    assert status == 0 and printed.splitlines()[-1].endswith("layers.svg") and "layer" in out.read_text("utf-8")
    assert len((tmp_path / "all.csv").read_text("utf-8").splitlines()) == 1 + 30 * 2


def test_another_picture_is_put_in(run, loaded, picture, tmp_path):
    other, wrong = tmp_path / "other.png", tmp_path / "wrong.png"
    with Image.open(picture) as opened:
        opened.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
        opened.resize((30, 90)).save(wrong)
    told = ["--image", picture, *ASK, "--answer", "Purple."]
    status, printed, _ = run("patch", *told, "--source", other, "--layers", 4, "--json")
    found = json.loads(printed)
    assert status == 0 and found["certificates"][0]["achieved"]["distance to what replaces it"] == 0
    status, _, err = run("patch", *told, "--source", wrong, "--layers", 4)
    assert status == 1 and one_line(err) and "size" in err
    status, _, err = run("patch", *told, "--source", picture, "--layers", 4)
    assert status == 1 and one_line(err) and "chang" in err


def test_states_are_pushed(run, loaded, reference, picture, tmp_path):
    told = ["--image", picture, *ASK, "--answer", "Purple.", "--random", 1, "--alpha", "0.2"]
    status, printed, _ = run("steer", *told, "--against", "Yellow.", "--out", tmp_path / "doses.svg")
    assert status == 0 and "slope" in printed and "random" in (tmp_path / "doses.svg").read_text("utf-8")
    x = reference.prepare(ASK[1], str(picture), answer="Purple.")
    made = li.image_difference(reference, [x], sites="blocks.20.hook_mlp_out")
    status, printed, _ = run("steer", *told, "--direction", made.save(tmp_path / "way.safetensors"), "--json")
    found = json.loads(printed)
    assert status == 0 and found["alphas"] == [0, 0.2]
    pushed = li.intervene(reference, x, made.steer(0.2), unit="answer")
    assert found["mean"] == pytest.approx(pushed.values[:, 0].tolist(), abs=1e-4)
    other = li.score(reference, x).save(tmp_path / "scores.safetensors")
    status, _, err = run("steer", *told, "--direction", other)
    assert status == 1 and one_line(err) and "holds a Scores" in err


def test_an_answer_is_watched(run, loaded, picture, tmp_path):
    told = ["--image", picture, *ASK, "--tokens", 3]
    status, printed, _ = run("trace", *told, "--without", "hidden", "--without", "noise", "--out", tmp_path / "a.svg")
    assert status == 0 and "Purple" in printed and "noise" in (tmp_path / "a.svg").read_text("utf-8")
    status, printed, _ = run("trace", *told, "--decoding", "dola", "--json")
    found = json.loads(printed)
    assert status == 0 and len(found["ids"]) <= 3 and "DoLa" in found["provenance"]["parameters"]["choosing"]
    drawn = [run("trace", *told, "--temperature", 2, "--seed", 5, "--json")[1] for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("command", "options", "told"),
    [
        ("knockout", ["--layers", "9-2"], "--layers is numbers"),
        ("knockout", ["--layers", "3", "--window", "2"], "give one"),
        ("knockout", ["--out", "a.png"], "--window 1"),
        ("knockout", ["--keys", "sky"], "no role 'sky'"),
        ("knockout", ["--against", " "], "a blank"),
        ("patch", ["--source", "missing.png"], "missing.png"),
        ("steer", ["--direction", "missing.safetensors"], "missing.safetensors"),
        ("steer", ["--without", "nothing"], "no counterfactual 'nothing'"),
        ("trace", ["--answer", "Yes."], "contrast"),
        ("trace", ["--decoding", "best"], "no decoding 'best'"),
        ("trace", ["--without", "nothing"], "no counterfactual 'nothing'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_opened(run, picture, monkeypatch, command, options, told):
    monkeypatch.setattr("lvlm_interp.cli.options.open_model", lambda *_, **__: pytest.fail("the model was opened"))
    status, _, err = run(command, "--image", picture, *ASK, *options)
    assert status == 1 and one_line(err) and told in err
