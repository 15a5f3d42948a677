"""No config of a real model is refused: the defaults of every family, and what published configs hold besides."""

import json

import pytest
from transformers import AutoConfig, GenerationConfig, LlamaConfig, LlavaConfig

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from lvlm_interp.families.shared.registry import FAMILIES, family_of
from lvlm_interp.opening.config import need_sound, need_weights_for
from lvlm_interp.opening.fault import need_ends, need_processing
from lvlm_interp.opening.image_token import need_image_token
from tests.families import tiny_model
from tests.families.shared.tiny import IMAGE, need
from tests.saved import SAVED, UNOPENED, processor, save


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_the_default_config_of_a_family_is_sound(kind):
    need(kind)
    config = AutoConfig.for_model(kind)
    need_sound(config, kind)
    need_sound(type(config).from_dict(json.loads(json.dumps(config.to_dict(), default=str))), kind)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        *(("text_config", name, None) for name in ("sliding_window", "head_dim", "pad_token_id", "rope_scaling")),
        ("text_config", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("text_config", "time_step_limit", [0.0, float("inf")]),
        ("text_config", "eos_token_id", [1, 106]),
        ("text_config", "pad_token_id", 0),
        *((None, "vision_feature_layer", value) for value in (-1, -25, [-2, -5], [0, -1])),
        ("text_config", "rope_theta", 1),
        (None, "pad_token_id", -1),
        (None, "image_grid_pinpoints", [[336, 672]]),
        (None, "a field of a later release", {"n": 0}),
    ],
)
def test_what_published_configs_hold_is_sound(part, field, value):
    settings = LlavaConfig().to_dict()
    (settings[part] if part else settings)[field] = value
    need_sound(LlavaConfig.from_dict(settings), "it")


@pytest.mark.parametrize("number", [float("nan"), [0.5, float("nan")]])
def test_nan_is_not(number):
    """The control."""
    settings = LlavaConfig().to_dict()
    settings["text_config"]["initializers"] = number
    with pytest.raises(ModelError, match=r"it has text_config.initializers: .*NaN is no number"):
        need_sound(LlavaConfig.from_dict(settings), "it")


@pytest.mark.parametrize("ends", [None, 2, [1, 106], [], -1])
def test_ends_that_published_configs_have(ends):
    need_ends(GenerationConfig(eos_token_id=ends, bos_token_id=ends, decoder_start_token_id=ends))


@pytest.mark.parametrize("name", [name for name in SAVED if name not in UNOPENED])
def test_what_is_tried_of_a_processor_holds_of_every_family(name):
    need(name)
    one = processor(name)
    need_processing(one, family_of(tiny_model(name).config).prompt)
    need_image_token(one, IMAGE, name)


@pytest.mark.parametrize("token", ["<begin>", "<end>", "<image>"])
def test_marks_that_stand_around_an_image_may_be_its_token(token):
    """As in families that name another of their tokens of images than the one that they repeat (Gemma 3, Llama 4)."""
    one = processor("llava")
    found = one.tokenizer.convert_tokens_to_ids(token)
    need_image_token(one, found, "it")


@pytest.mark.parametrize("name", [name for name in SAVED if name not in UNOPENED])
@pytest.mark.parametrize("template", ["its own", "none", "of words alone"])
def test_a_field_is_looked_for_only_where_something_fails(tmp_path, monkeypatch, name, template):
    """Nor where a chat template writes no images: what the processor makes of them is asked of it without one."""
    need(name)
    monkeypatch.setattr("lvlm_interp.opening.refusals.field_at_fault", lambda *_, **__: pytest.fail("looked for"))
    written = save(name, tmp_path) / "chat_template.jinja"
    if template == "none":
        written.unlink()
    elif template != "its own":
        written.write_text("{{ raise_exception('words') }}")
    assert li.load(tmp_path).processor is not None


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 10**10), ("num_hidden_layers", 10**8), ("hidden_size", 10**7)]
)
def test_a_model_far_larger_than_its_weights_is_refused_before_it_is_allocated(tmp_path, field, value):
    save("llava", tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    config = AutoConfig.from_pretrained(tmp_path)
    need_weights_for(config, tmp_path)
    settings["text_config"][field] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="numbers or more, and its weight files hold"):
        li.load(tmp_path)


def test_a_model_in_two_bits_is_not(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    settings = {"hidden_size": 32, "num_hidden_layers": 5, "vocab_size": 100}
    need_weights_for(LlamaConfig(**settings), tmp_path)
    with pytest.raises(ModelError):
        need_weights_for(LlamaConfig(**settings | {"vocab_size": 1000}), tmp_path)
