"""What is said of a model that cannot be opened: which file, which weight, which rule; not where else to look."""

import json

import pytest

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from lvlm_interp.opening.broken import remedy
from lvlm_interp.shown import gist
from tests.saved import save
from tests.tiny import tiny_llava


@pytest.fixture
def folder(tmp_path):
    return save("llava", tmp_path / "llava")


def refused(folder):
    with pytest.raises(ModelError) as found:
        li.load(folder)
    said = str(found.value)
    assert len(said) < 900 and "above report" not in said and str(folder) in said
    return said


FILES = ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]


@pytest.mark.parametrize("name", [*FILES, "chat_template.json"])
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
    assert (folder / name).is_file() or name not in FILES
    (folder / name).write_text(text)
    said = refused(folder)
    assert f"{folder / name} {wrong}" in said and "Put back what was there" in said and "force_download" not in said


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("generation_config.json", b"version https://git-lfs.github.com/spec/v1", "cannot be read as JSON"),
        ("generation_config.json", b"<!DOCTYPE html>", "cannot be read as JSON"),
        ("tokenizer.json", b"{}", "has no 'added_tokens'"),
        ("chat_template.json", b"{}", "has no 'chat_template'"),
        ("chat_template.jinja", "{{ 'é' }}".encode("latin-1"), "cannot be read as text in UTF-8"),
    ],
)
def test_a_file_of_something_else_is_named(folder, name, content, wrong):
    (folder / name).write_bytes(content)
    assert f"{folder / name} {wrong}" in refused(folder)


def test_the_part_of_the_weights_that_was_cut_is_named(folder):
    model = li.load(folder).model
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    second = sorted(folder.glob("*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-100])
    assert f"{second} is damaged" in refused(folder)


def test_models_of_a_hub_are_fetched_anew(tmp_path):
    """The control of what is said of a directory."""
    assert "force_download=True" in remedy("owner/name") and "force_download" not in remedy(str(tmp_path))


def changed(folder, part="text_config", **settings):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (config[part] if part else config).update(settings)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        *((part, "num_hidden_layers", value) for part in ("text_config", "vision_config") for value in (0, -1)),
        ("vision_config", "patch_size", 0),
        ("text_config", "num_key_value_heads", 0),
        *(("", "image_token_id", value) for value in (-1, None, True, "x")),
        *(("", "vision_feature_layer", value) for value in (3, -4, [0, 99])),
    ],
)
def test_a_field_that_no_model_can_have_is_named_when_it_is_opened(folder, part, field, value):
    changed(folder, part, **{field: value})
    assert f"its config.json has {part}{'.' * bool(part)}{field}: {value!r};" in refused(folder)


@pytest.mark.parametrize("layer", [2, -3])
def test_layers_at_the_ends_of_a_tower_are_layers(folder, layer):
    """The control."""
    changed(folder, "", vision_feature_layer=layer)
    assert li.load(folder).model.config.vision_feature_layer == layer


def test_a_field_of_a_model_in_memory():
    model = tiny_llava()
    model.config.image_token_id = -1
    with pytest.raises(ModelError, match="the config of this model has image_token_id: -1"):
        li.wrap(model)


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
