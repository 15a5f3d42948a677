"""What people outside found by trying what nobody had thought of; each by its kind."""

import copy
import dataclasses
import io
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaConfig, Mistral3Config

import lvlm_interp as li
from lvlm_interp.cli.options import need_apart
from lvlm_interp.errors import ImageError, InputError, ModelError, OutputError
from lvlm_interp.families.shared import registry
from lvlm_interp.heatmaps.localization import located
from lvlm_interp.heatmaps.method import method_of
from lvlm_interp.inputs.chat import need_texts
from lvlm_interp.inputs.media import open_image
from tests import saved
from tests.made import made
from tests.tiny import tiny_inputs, tiny_llava

# --- language models in other models ----------------------------------------------------------------------------------


def test_a_language_model_that_is_not_plain_is_checked_first():
    own, plain, other = (LlavaConfig(text_config={"model_type": kind}) for kind in ("llama", "qwen2", "biogpt"))
    assert registry.tried(own) and registry.tried(plain) and not registry.tried(other)


def test_queries_that_are_scaled_by_where_they_stand():
    """Ministral 3: padding in front must not move what it scales by."""
    words = {"model_type": "ministral3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    words |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 200}
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    words |= {"rope_parameters": rope | {"llama_4_scaling_beta": 0.3}, "initializer_range": 0.3}
    sees = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sees |= {"num_attention_heads": 4, "head_dim": 8, "image_size": 56, "patch_size": 14}
    config = Mistral3Config(text_config=words, vision_config=sees, image_token_index=150, spatial_merge_size=2)
    torch.manual_seed(0)
    vlm = li.wrap(AutoModelForImageTextToText.from_config(config).eval())
    short, long = (vlm.inputs(input_ids=torch.arange(20, 20 + n)[None], answer_start=n - 2) for n in (30, 60))
    assert torch.allclose(vlm.run(vlm.batch([short, long]))[0][-30:], vlm.run(short)[0], atol=1e-4)


# --- what decides beside weights --------------------------------------------------------------------------------------


class Steered(nn.Module):
    def __init__(self, inner, vectors):
        super().__init__()
        self.inner, self.vectors = inner, vectors

    def forward(self, *args, **kwargs):
        vector = self.vectors["joy"] if isinstance(self.vectors, dict) else self.vectors[0]
        return self.inner(*args, **kwargs) + torch.as_tensor(vector, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["dictionary", "list", "array", "nested"])
def test_vectors_in_lists_and_dictionaries_are_part_of_the_model(kind):
    made_of = {
        "dictionary": lambda v: {"joy": v},
        "list": lambda v: [v],
        "array": lambda v: v[None].numpy().copy(),
        "nested": lambda v: {"joy": v, "more": [{"deep": v.clone()}]},
    }[kind]
    model = tiny_llava()
    layer = model.model.language_model.layers[1]
    layer.mlp = Steered(layer.mlp, made_of(torch.zeros(32)))
    vlm, x = li.wrap(model), tiny_inputs(li.wrap(model))
    before, contrast = vlm.fingerprint, li.contrast(vlm, x)
    layer.mlp.vectors = made_of(torch.linspace(-3, 3, 32))
    assert vlm.fingerprint != before and li.contrast(vlm, x).provenance.weights != contrast.provenance.weights
    layer.mlp.vectors = made_of(torch.zeros(32))
    assert vlm.fingerprint == before


def test_a_model_is_opened_whatever_autocast_is_on():
    model = tiny_llava()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vlm = li.wrap(model)
        found = li.contrast(vlm, tiny_inputs(vlm))
    assert "autocast: torch.bfloat16" in found.provenance.edits


# --- threads ----------------------------------------------------------------------------------------------------------


def elsewhere(run):
    """Run something in another thread, to its end."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    "site",
    [
        "blocks.1.hook_resid_post",
        "blocks.1.hook_resid_mid",
        "blocks.1.ln1.hook_normalized",
        "blocks.1.attn.hook_pattern",
    ],
)
def test_a_model_may_be_served_by_another_thread_meanwhile(site):
    """A pass that goes not by us is in no capture of ours, nor is what we edit in it."""
    vlm = li.wrap(tiny_llava())
    x, y = tiny_inputs(vlm), tiny_inputs(vlm, seed=7)
    names = [site, "blocks.0.hook_resid_pre"]
    alone, plain = vlm.capture(x, names), vlm.model(**y.model_inputs).logits.detach()
    halved = vlm.capture(x, names, edits={"blocks.0.hook_resid_pre": lambda value: value / 2})
    served = []

    def edit(value):
        served.append(elsewhere(lambda: vlm.model(**y.model_inputs).logits.detach()))
        return value / 2

    assert torch.equal(vlm.capture(x, names, edits={"blocks.0.hook_resid_pre": edit})[site], halved[site])
    assert len(served) == 1 and torch.allclose(served[0], plain, atol=1e-5)
    assert not torch.equal(halved[site], alone[site])


def test_within_a_user_s_edits_a_thread_of_hers_is_edited():
    """One thread generates while another prints what comes."""
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    plain = vlm.run(x)
    with vlm.visiting({"blocks.0.hook_resid_pre": lambda value: value / 2}):
        edited = elsewhere(lambda: vlm.model(**x.model_inputs).logits.detach())
    assert not torch.allclose(edited, plain)


# --- pictures, boxes, numbers -----------------------------------------------------------------------------------------


def tiff(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "TIFF")
    return stream.getvalue()


def test_a_file_of_32_bits_that_may_be_bytes_is_refused():
    numbers = np.arange(0, 256, 4).reshape(8, 8)
    with pytest.raises(ImageError, match="bytes, or dark 16 bits"):
        open_image(tiff(numbers.astype(np.int32)))
    assert np.asarray(open_image(tiff((numbers * 257).astype(np.uint16))))[..., 0].max() > 250
    assert np.asarray(open_image(tiff((numbers * 257).astype(np.int32))))[..., 0].max() > 250
    assert np.asarray(open_image(tiff(numbers.astype(np.uint16))))[..., 0].max() <= 1  # 16 bits, and dark


BOX = [0, 0, 20, 20]


@pytest.mark.parametrize(
    "box",
    [
        np.array(BOX),
        tuple(np.array(BOX)),
        torch.tensor(BOX),
        tuple(torch.tensor(BOX)),
        pd.Series(BOX),
        [np.array(BOX)],
        torch.tensor([BOX]),
    ],
)
def test_boxes_of_any_numbers(box):
    patches = made().patches
    assert located(patches, box) == located(patches, tuple(BOX))


@pytest.mark.parametrize("box", [[], (1, 2, 3), "box", [(1, 2, 3)], 5, None, {}])
def test_what_is_no_box(box):
    with pytest.raises(InputError, match=r"left, top, right, bottom"):
        located(made().patches, box)


@pytest.mark.parametrize("layers", [np.array([0, 1]), range(2), [0, 1], torch.tensor([0, 1]), pd.Series([0, 1])])
def test_layers_of_any_list_of_numbers(layers):
    assert method_of("attention", {"layers": layers}).parameters["layers"] == (0, 1)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3), 3])
def test_seeds_of_any_package(seed):
    kept = li.wrap(tiny_llava()).provenance("m", seed=seed).seed
    assert kept == 3 and type(kept) is int


def test_a_result_is_equal_to_itself_whatever_its_parameters_were(tmp_path):
    """They are kept as they are read again."""
    given = {"a": np.array([1, 2]), "b": range(2), "c": (Fraction(1), [Decimal("0.5"), np.float64(0.25)])}
    about = dataclasses.replace(made().contrast.provenance, parameters=given)
    assert about.parameters == {"a": [1, 2], "b": (0, 1), "c": (1.0, [0.5, 0.25])}
    found = dataclasses.replace(made().contrast, provenance=about)
    assert li.load_result(found.save(tmp_path / "a.safetensors")) == found


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_picture_that_is_read_by_its_address_is_not_written_over(tmp_path):
    picture = tmp_path / "a b.png"
    picture.write_bytes(b"picture")
    for address in (picture.as_uri(), f"file://{picture}", str(picture)):
        with pytest.raises(OutputError, match="a file that this command reads"):
            need_apart([picture], [address])
    need_apart([picture], ["https://example.org/a%20b.png", f"file://{tmp_path}/other.png"])


@pytest.mark.parametrize(
    "column",
    [
        pd.Categorical(["b", "a", "b"]),
        pd.date_range("2020", periods=3, tz="Asia/Tokyo"),
        pd.to_timedelta([1, 2, 3]),
        pd.array([1, None, 3], dtype="Int64"),
        pd.array([True, None, False], dtype="boolean"),
        pd.period_range("2020-01", periods=3, freq="M"),
        np.array([1, 2, 3], "float16"),
        [(1, 2), (3,), ()],
    ],
)
def test_a_table_in_a_result_is_what_is_read_again(column, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Held(li.results.Result):
        frame: pd.DataFrame

    found = Held(pd.DataFrame({"a": column}), provenance=made().contrast.provenance)
    again = type(found).load(found.save(tmp_path / "a.safetensors"))
    assert again == found
    pd.testing.assert_frame_equal(again.frame, found.frame)


# --- parts that read the same -----------------------------------------------------------------------------------------

TWICE = {"unit": "word", "substrates": "tokens", "regions": 2, "orders": 2, "sets": 8}


@pytest.fixture(scope="module")
def chat():
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def twice(chat):
    return chat.prepare("is it red?", Image.radial_gradient("L").resize((28, 28)), answer="no no")


def test_a_part_that_is_said_twice_is_told_by_its_place(chat, twice):
    """By its number, not by its text."""
    every = li.attribute(chat, twice, unit="word")
    second = li.faithfulness(chat, twice, every, 1, **TWICE)
    alone = li.faithfulness(chat, twice, li.attribute(chat, twice, unit="word", target=1), target=1, **TWICE)
    assert torch.allclose(second.insertion, alone.insertion, atol=1e-5)
    first = li.faithfulness(chat, twice, every, **TWICE)
    assert not torch.allclose(first.insertion, second.insertion, atol=1e-3)
    assert torch.equal(li.faithfulness(chat, twice, every, -1, **TWICE).insertion, second.insertion)


def test_maps_of_another_part_or_example_that_read_the_same(chat, twice):
    first, second = (li.attribute(chat, twice, unit="word", target=n) for n in (0, 1))
    with pytest.raises(InputError, match=r"the map 'b' is of the tokens \(.*\) of the answer, and .* were asked for"):
        li.faithfulness(chat, twice, {"a": first, "b": second}, target=0, **TWICE)
    effects = li.interactions(chat, twice, ["red"], regions=2, unit="word")
    effects.scored(first, 0)
    with pytest.raises(InputError, match="the map 'map' is of the tokens"):
        effects.scored({"map": second}, 0)
    other = chat.prepare("is it red?", Image.linear_gradient("L").resize((28, 28)), answer="no no")
    another = li.attribute(chat, other, unit="word", target=0)
    with pytest.raises(InputError, match="the map 'b' is of another example"):
        li.faithfulness(chat, twice, {"a": first, "b": another}, target=0, **TWICE)


# --- texts, arrays, devices -------------------------------------------------------------------------------------------


def test_blank_lines_of_a_context_are_the_user_s(chat):
    picture = Image.new("RGB", (28, 28), "red")
    told = [chat.prepare("q?", picture, context=text, answer="a") for text in ("ctx", "ctx\n", "ctx\n\n\n")]
    assert told[0].input_ids.tolist() == told[1].input_ids.tolist()  # it ends with a line
    assert told[2].length == told[1].length + 2 and told[2].texts["context"] == "ctx\n\n\n"


def test_masked_arrays_are_not_kept_as_numbers(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Masked(li.results.Result):
        value: np.ndarray

    held = Masked(np.ma.array([1.0, 999.0], mask=[False, True]), provenance=made().contrast.provenance)
    with pytest.raises(OutputError, match="masked"):
        held.save(tmp_path / "a.safetensors")
    plain = dataclasses.replace(held, value=np.ma.array([1.0, 2.0]))
    assert plain.save(tmp_path / "b.safetensors").exists()


def test_another_default_device_is_named(chat, twice):
    with torch.device("meta"), pytest.raises(InputError, match="torch's default device is 'meta'"):
        li.contrast(chat, twice)
    assert li.contrast(chat, twice).delta.isfinite().all()


def test_ids_are_no_text():
    with pytest.raises(InputError, match=r"li.Answer\(text, ids\)"):
        need_texts("q?", None, answer=[5, 6])


# --- what a model is set to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["config", "text_config"])
def test_a_model_that_gives_tuples_is_refused(part):
    model = tiny_llava()
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    (model.config if part == "config" else model.config.text_config).return_dict = False
    for run in (vlm.run, vlm.generate, lambda y: li.contrast(vlm, y), lambda y: vlm.capture(y, "blocks.*")):
        with pytest.raises(ModelError, match="says return_dict=False"):
            run(x)


def test_blocks_that_would_share_a_cache_do_not_generate():
    """A block that was copied counts itself as the one that it is of."""
    model = tiny_llava()
    vlm = li.wrap(model)
    x, layers = tiny_inputs(vlm), model.model.language_model.layers
    layers[1] = copy.deepcopy(layers[2])
    with pytest.raises(ModelError, match="block 1 counts itself as 2"):
        vlm.generate(x, max_new_tokens=6)


def test_where_a_map_lies_is_a_row():
    found = located(made().patches, tuple(BOX))
    assert found.to_frame().loc[0, "energy"] == found.energy and found.token in repr(found)
