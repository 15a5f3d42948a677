"""What is said of a model that cannot be opened: which file, which weight, which rule; not where else to look."""

import json

import pytest

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from lvlm_interp.shown import gist
from tests.saved import save


@pytest.fixture
def folder(tmp_path):
    return save("llava", tmp_path / "llava")


def refused(folder):
    with pytest.raises(ModelError) as found:
        li.load(folder)
    said = str(found.value)
    assert len(said) < 900 and "above report" not in said and str(folder) in said
    return said


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is empty"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list of JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_broken_file_is_named(folder, name, text, wrong):
    assert (folder / name).is_file()
    (folder / name).write_text(text)
    said = refused(folder)
    assert f"{folder / name} {wrong}" in said


def changed(folder, **settings):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"].update(settings)
    file.write_text(json.dumps(config))


def test_the_rule_that_a_config_breaks_is_said(folder):
    changed(folder, num_attention_heads=5)
    assert "number of attention heads (5)" in refused(folder)


def test_the_field_that_is_no_number_is_said(folder):
    changed(folder, hidden_size="wide")
    said = refused(folder)
    assert "hidden_size" in said and "'wide'" in said


def test_weights_of_other_shapes_are_named(folder):
    changed(folder, vocab_size=64)
    said = refused(folder)
    assert "have other shapes in its files" in said and "lm_head" in said and "[64, " in said


def test_a_tokenizer_that_is_gone(folder):
    (folder / "tokenizer.json").unlink()
    said = refused(folder)
    assert "one of: (1)" in said or "tokenizer" in said.lower()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("Class error for 'a':\n    ValueError: 5 is not 4.\nmore"),
            "for 'a': ValueError: 5 is not 4.",
        ),
        (ValueError("One of: \n(1) a file, \n(2) another or \n(3) a third. \nMuch more."), "or (3) a third."),
        (RuntimeError("It failed. For details look at the above report!"), "It failed."),
        (RuntimeError("For details look at the above report!"), "RuntimeError"),
        (KeyError("model_type"), "KeyError: 'model_type'"),
        (AttributeError("'list' object has no attribute 'get'"), "AttributeError: 'list'"),
        (ValueError(""), "ValueError"),
        (ValueError("one\ntwo"), "one"),
        (ValueError("and:\n" * 1000), "and: and:"),
    ],
)
def test_the_gist_of_an_error(error, said):
    found = gist(error)
    assert said in found and "\n" not in found and len(found) <= 400 and not found.endswith("report!")


def test_the_gist_goes_no_further_than_it_must():
    assert gist(ValueError("one\ntwo")) == "one" and "more" not in gist(ValueError("a:\nb\nmore"))
