"""What is said of a model that cannot be opened: which file, which weight, which rule; not where else to look."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lvlm_interp as li
from lvlm_interp.compat import READS_LAYER_ZERO
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.opening.broken import remedy
from lvlm_interp.opening.fault import PICTURE
from lvlm_interp.shown import gist
from tests.families.shared.tiny import need
from tests.saved import SAVED, UNOPENED, processor, save
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
        ("chat_template.jinja", b" ", "is empty"),
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
        *(("", "vision_feature_layer", value) for value in (3, -4, [0, 99], *([] if READS_LAYER_ZERO else [0]))),
    ],
)
def test_a_field_that_no_model_can_have_is_named_when_it_is_opened(folder, part, field, value):
    changed(folder, part, **{field: value})
    assert f"its config.json has {part}{'.' * bool(part)}{field}: {value!r};" in refused(folder)


@pytest.mark.parametrize("theta", [0, -1])
def test_a_rope_that_cannot_turn(folder, theta):
    changed(folder, rope_parameters={"rope_type": "default", "rope_theta": theta})
    assert f"text_config.rope_parameters.rope_theta: {theta}; it is above 0" in refused(folder)


def test_windows_of_no_size(tmp_path):
    folder = save("gemma3", tmp_path)
    changed(folder, sliding_window=None)
    assert "text_config.sliding_window: None; layer_types has sliding_attention" in refused(folder)


def test_nan_that_no_weight_holds():
    """Whatever number of the config makes it."""
    model = tiny_llava()
    model.model.language_model.rotary_emb.inv_freq.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"gives NaN or infinity for a few words.*numbers of its config.json"):
        li.wrap(model)


def lacking(folder, *names):
    """A processor's file without settings."""
    file = folder / "processor_config.json"
    whole = {name: value for name, value in json.loads(file.read_text()).items() if name not in names}
    file.write_text(json.dumps(whole))
    return file


@pytest.mark.parametrize("names", [["patch_size"], ["patch_size", "vision_feature_select_strategy"]])
def test_settings_that_a_processor_lacks(folder, names):
    """Those of the config make it whole, and are told."""
    file = lacking(folder, *names)
    said = refused(folder)
    assert f"{file} lacks {{" in said and all(f"'{name}': " in said for name in names) and "'patch_size': 14" in said
    told = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))
    assert li.load(folder).prepare("What?", PICTURE).images


def test_an_old_directory_whose_processor_has_no_file_of_its_own(folder):
    file = folder / "processor_config.json"
    told = {**json.loads(file.read_text())["image_processor"], "processor_class": "LlavaProcessor"}
    file.unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    assert f"{file} lacks {{" in refused(folder)


def test_settings_of_another_processor_are_told_where_they_show(folder):
    lacking(folder, "num_additional_image_tokens")
    vlm = li.load(folder)
    with pytest.raises(InputError, match=r"LlavaProcessor\(patch_size=14.*num_additional_image_tokens=0\) is not what"):
        vlm.run(vlm.prepare("What?", PICTURE))


def test_the_processor_is_told_from_its_template():
    one = processor("llava", patch_size=None)
    with pytest.raises(InputError, match=r"^LlavaProcessor\(patch_size=None, .*processor_config.json\) refused"):
        li.wrap(tiny_llava(), one).prepare("What?", PICTURE)
    one = processor("llava")
    one.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(InputError, match=r"^the model's chat template refused the conversation: no"):
        li.wrap(tiny_llava(), one).prepare("What?", PICTURE)


@pytest.mark.parametrize("name", [name for name in SAVED if name not in UNOPENED])
@pytest.mark.parametrize("several", [False, True])
def test_a_chat_template_that_only_the_tokenizer_has(tmp_path, name, several):
    need(name)
    folder = save(name, tmp_path)
    own = li.load(folder).prepare("What?", PICTURE, answer="A").input_ids
    template = (file := folder / "chat_template.jinja").read_text()
    file.unlink()
    named = [{"name": "default", "template": template}, {"name": "other", "template": "other"}]
    rewritten(folder, "tokenizer_config.json", "chat_template", named if several else template)
    assert li.load(folder).prepare("What?", PICTURE, answer="A").input_ids.equal(own)


def test_no_end_of_an_answer_is_that_of_the_config(folder):
    rewritten(folder, "generation_config.json", "eos_token_id", [])
    vlm = li.load(folder)
    assert vlm.stops() == [vlm.model.config.get_text_config().eos_token_id or 0]
    assert len(vlm.generate(vlm.prepare("What?", PICTURE), 2).ids) <= 2


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


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.int16])
def test_weights_that_are_whole_numbers(folder, kind):
    """Read as they stand, they would be a hundred times too large, without a word."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({**weights, name: (weights[name] * 100).round().to(kind)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"holds '{name}' as"):
        li.load(folder)


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


def rewritten(folder, name, path, value):
    """A field of a file of JSON, told by the names on the way to it."""
    file = folder / name
    whole = json.loads(file.read_text()) if file.is_file() else {}
    *outer, last = path.split(".")
    inside = whole
    for step in outer:
        inside = inside[step]
    inside[last] = value
    file.write_text(json.dumps(whole))
    return file


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("config.json", "text_config.hidden_size", "wide"),
        ("config.json", "text_config", 7),
        ("config.json", "vision_config.hidden_act", "banana"),
        ("config.json", "text_config.rms_norm_eps", float("nan")),
        ("generation_config.json", "eos_token_id", "x"),
        ("generation_config.json", "eos_token_id", [2, None]),
        ("generation_config.json", "bos_token_id", {}),
        ("generation_config.json", "bos_token_id", "x"),
        ("generation_config.json", "decoder_start_token_id", "x"),
        ("tokenizer_config.json", "model_max_length", "long"),
        ("tokenizer_config.json", "padding_side", 5),
        ("processor_config.json", "image_processor.image_mean", "x"),
        ("processor_config.json", "image_processor.rescale_factor", float("nan")),
        ("processor_config.json", "image_processor.size", {"height": -3, "width": 28}),
        ("processor_config.json", "image_processor.crop_size", {"height": 28, "width": 0}),
        ("processor_config.json", "image_processor", 5),  # which cannot be left out
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_file(folder, name, path, value):
    """Whatever transformers trips over, in whatever words, now or only when a picture is shown."""
    file = rewritten(folder, name, path, value)
    said = refused(folder)
    assert file.name in said and f"{path}: {value!r}" in said and "Put back" in said


@pytest.mark.parametrize(
    ("field", "value"), [("peft_type", 5), ("r", "x"), ("r", -2), ("target_modules", 7), ("lora_alpha", None)]
)
def test_a_field_of_an_adapter_is_named(folder, field, value):
    peft = pytest.importorskip("peft")
    model = tiny_llava()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(folder / "adapter")
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    assert li.load(folder).model.active_adapters() == ["default"]
    file = rewritten(folder, "adapter_config.json", field, value)
    said = refused(folder)
    assert f"{file} has {field}: {value!r}, with which it cannot be used" in said


def test_what_is_told_of_a_file_leaves_the_file_alone(folder):
    file = rewritten(folder, "generation_config.json", "eos_token_id", "x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert str(file) in refused(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_image_token_beyond_the_tokenizer(folder):
    changed(folder, "", image_token_id=99999)
    said = refused(folder)
    assert "the image token 99999 (beyond its tokenizer)" in said and "150 ('<image>')" in said


def test_an_image_token_that_is_the_mark_of_something_else(folder):
    """It may be one of several, for all that the files say; with the first picture it is told."""
    changed(folder, "", image_token_id=151)
    with pytest.raises(InputError, match="0 image tokens in the prompt, by the model's config those of id 151"):
        li.load(folder).prepare("What is it?", PICTURE)


def test_a_tokenizer_that_knows_more_than_the_embedding(folder):
    vlm = li.load(folder)
    vlm.model.resize_token_embeddings(140)
    with pytest.raises(
        InputError, match=r"which knows the ids up to 139, .* input_ids: int64 \[1, \d+\] from \d+ to 150"
    ):
        vlm.generate(vlm.prepare("What is it?", PICTURE), 1)


@pytest.mark.parametrize("token", ["t", "<pad>", "</s>"])
def test_an_image_token_that_is_another_token(folder, token):
    """Of a model in memory too: the processor of another model."""
    vlm = li.load(folder)
    number = vlm.prompter.tokenizer.convert_tokens_to_ids(token)
    changed(folder, "", image_token_id=number)
    said = refused(folder)
    assert f"the image token {number} ({token!r})" in said and "150 ('<image>')" in said
    vlm.model.config.image_token_id = number
    with pytest.raises(ModelError, match="its processor writes 150"):
        li.wrap(vlm.model, vlm.processor)
