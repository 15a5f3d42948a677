"""What a model is, and how it is read, follows what is set on it; not what it only keeps, or how that was written."""

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.definitions import Definition
from lvlm_interp.errors import InputError, LvlmInterpWarning, SiteError
from lvlm_interp.model import choice
from lvlm_interp.opening.rounding import apart
from lvlm_interp.report import figures
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

SETTINGS = [("granite_docling", "logits_scaling"), ("gemma4", "final_logit_softcapping")]


@pytest.mark.parametrize(("family", "name"), SETTINGS)
def test_a_setting_of_the_logits_that_changes_later_counts(family, name):
    """Read with the setting as it is now, scores are those of a plain pass; the first setting would be far off."""
    vlm = li.wrap(tiny_model(family))
    x = tiny_example(vlm, family)
    before = li.score(vlm, x, x.everything).logits()[0, -1]
    text = vlm.model.config.get_text_config()
    setattr(text, name, 1.7 * (getattr(text, name) or 1.0))
    for module in vlm.model.modules():  # some families keep their own copy of the number
        if name in vars(module):
            setattr(module, name, getattr(text, name))
    after, plain = li.score(vlm, x, x.everything).logits()[0, -1], vlm.run(x)[0, -2]
    assert torch.allclose(after.float(), plain.float(), atol=1e-4) and not torch.allclose(after, before, atol=1e-3)


def test_a_setting_that_fills_inputs_of_layers_is_in_the_fingerprint():
    vlm = li.wrap(tiny_model("gemma4"))
    before = vlm.fingerprint
    vlm.model.config.get_text_config().pad_token_id = 33
    assert vlm.fingerprint != before


def test_what_a_module_keeps_in_any_order_is_the_same():
    vlm = li.wrap(tiny_llava())
    layer = vlm.decoder.layers[0]
    layer.table = {"a": 1, "b": (2, 3)}
    before = vlm.fingerprint
    layer.table = {"b": [2, 3], "a": 1}
    assert vlm.fingerprint == before
    layer.table = {"b": [3, 2], "a": 1}
    assert vlm.fingerprint != before


@pytest.mark.parametrize("kind", [tuple, list, lambda values: {"of": values[0]}])
def test_activations_that_a_hook_keeps_are_no_settings(kind):
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    captured = vlm.capture(x, "hook_embed")
    vlm.decoder.layers[0].kept = kind([torch.zeros(3), torch.ones(2)])
    assert captured.provenance.weights == vlm.fingerprint


def test_switches_of_adapters_that_were_touched_and_are_off_are_as_before():
    vlm = li.wrap(tiny_llava())
    before, captured = vlm.fingerprint, vlm.capture(tiny_inputs(vlm), "hook_embed")
    vlm.decoder.norm._disable_adapters = False
    assert vlm.fingerprint == before == captured.provenance.weights
    vlm.decoder.norm._disable_adapters = True
    assert vlm.fingerprint != before


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, np.int64])
def test_an_epsilon_of_any_kind_is_read(kind):
    """An edit that changes nothing changes no logit; with an epsilon that is not read it would, by more than one."""
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    vlm.decoder.norm.variance_epsilon = kind(5)
    edited = vlm.capture(x, "hook_embed", edits={"ln_final.hook_scale": lambda scale: scale * 1.0})["logits"]
    assert torch.allclose(edited, vlm.run(x), atol=1e-4)


def test_tokens_that_were_added_later_are_known():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    ids = x.model_inputs["input_ids"].clone()
    rows = vlm.model.get_input_embeddings().weight.shape[0]
    ids[0, -1] = rows
    with pytest.raises(InputError, match=f"holds {rows}"):
        vlm.inputs(ids, pixel_values=x.model_inputs["pixel_values"])
    vlm.model.resize_token_embeddings(rows + 8)
    assert vlm.inputs(ids, pixel_values=x.model_inputs["pixel_values"]).length == x.length


def test_an_answer_does_not_begin_before_the_picture_ends():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    first = x.where("image").nonzero()[0]
    with pytest.raises(InputError, match="an answer is text behind it"):
        vlm.inputs(x.model_inputs["input_ids"], int(first) + 1, pixel_values=x.model_inputs["pixel_values"])


def test_a_value_that_is_computed_in_pieces_has_no_gradient():
    vlm = li.wrap(tiny_model("qwen2_5_vl"))
    x = tiny_example(vlm, "qwen2_5_vl")
    with pytest.raises(SiteError, match="in pieces"):
        vlm.capture(x, "vision.blocks.0.attn.hook_z", grad=True)


ONE = (1, np.int64(1), torch.tensor(1), [1], {1}, range(1, 2), torch.tensor([1]), np.uint8(1), np.array([1]))


@pytest.mark.parametrize("number", ONE)
def test_numbers_of_any_kind_choose(number):
    """As layers and heads; where there is one for each, as positions."""
    found = choice.listed(number)
    assert found == [1] and type(found[0]) is int


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64])
def test_positions_of_any_whole_numbers_choose(dtype):
    vlm = li.wrap(tiny_llava())
    found = vlm.capture(tiny_inputs(vlm), "hook_embed", positions=torch.tensor([2, 16]).to(dtype))
    assert found["hook_embed"].shape[1] == 2


def unsigned(number):
    return torch.tensor(number, dtype=torch.uint16)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.uint64, torch.tensor, unsigned])
def test_numbers_of_any_kind_one_by_one_choose(kind):
    vlm = li.wrap(tiny_llava())
    x, site = tiny_inputs(vlm), "blocks.1.attn.hook_q"
    chosen = {"positions": map(kind, [2, 16]), "layers": map(kind, [1]), "heads": map(kind, [3])}
    found = vlm.capture(x, "blocks.*.attn.hook_q", **chosen)
    assert {*found} == {site, "logits"} and found[site].shape[1:3] == (2, 1)
    assert li.lens(vlm, x, layers=map(kind, [0, 3])).layers == (0, 3)


@pytest.mark.parametrize("truths", [[True, False, True, True], torch.tensor([True, False, True, True])])
def test_truths_are_no_heads(truths):
    vlm = li.wrap(tiny_llava())
    with pytest.raises((InputError, TypeError), match=r"heads|truth"):
        vlm.capture(tiny_inputs(vlm), "blocks.0.attn.hook_q", heads=truths)


def test_weights_on_disk_are_the_same_after_a_pass(tmp_path):
    """They come anew for each pass, and are no other weights for that."""
    accelerate = pytest.importorskip("accelerate")
    model = tiny_llava()
    accelerate.disk_offload(model, str(tmp_path), "cpu")
    vlm = li.wrap(model)
    captured = vlm.capture(tiny_inputs(vlm), "hook_embed")
    assert captured.provenance.weights == vlm.fingerprint


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", torch.float8_e5m2])
def test_types_that_are_not_computed_in_are_refused(dtype):
    vlm = li.wrap(tiny_llava())
    with pytest.raises(InputError, match=r"such as torch\.float16"):
        vlm.capture(tiny_inputs(vlm), "hook_embed", dtype=dtype)


def test_rows_that_an_adapter_couples_are_not_packed():
    """peft's Lily chooses its part by the mean over all rows: they run one by one, and no batch is made."""
    peft = pytest.importorskip("peft")
    if not hasattr(peft, "LilyConfig"):
        pytest.skip("this peft has no Lily")
    model = tiny_llava()
    peft.get_peft_model(model, peft.LilyConfig(r=4, target_modules=r".*language_model.*o_proj")).eval()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lily" in name:
            torch.nn.init.normal_(weight, 0, 0.3)
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    with pytest.raises(InputError, match="o_proj"):
        vlm.batch([x, tiny_inputs(vlm, seed=9)])
    with pytest.warns(LvlmInterpWarning):
        found = li.score(vlm, x, x.everything).logits()[0]
    plain = vlm.run(x)[0, x.answer_positions - 1]
    assert torch.allclose(found, plain, atol=1e-4)


def test_padding_does_not_hide_a_picture_that_is_looked_at_from_beside():
    vlm = li.wrap(tiny_model("mllama"))
    x = tiny_example(vlm, "mllama")
    mask = torch.ones_like(x.input_ids)
    mask[0, x.where("image")] = 0
    with pytest.raises(InputError, match=r"x\.hidden\('image'\)"):
        vlm.inputs(answer_start=x.answer_start, **{**x.model_inputs, "attention_mask": mask})


@pytest.mark.parametrize("limit", [-2, 0, float("nan"), float("inf")])
def test_limits_of_scales_are_above_zero(limit):
    vlm = li.wrap(tiny_llava())
    with pytest.raises(InputError, match="limit is a number, in raw logits, above 0"):
        figures.head_map(li.direct(vlm, tiny_inputs(vlm)), limit=limit)


@pytest.mark.parametrize("wrong", [{"keep": ("qestion",)}, {"keep": ("answer",)}])
def test_definitions_are_of_roles_and_parts(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Definition("mine", **wrong)


def test_selectivity_needs_types():
    x = torch.randn(60, 2, 4)
    found = li.fit_probes(x, [n % 2 for n in range(60)])
    for draw in (figures.probe_map, lambda one, name: figures.probe_layers({"a": one}, name)):
        with pytest.raises(InputError, match="needs types"):
            draw(found, "selectivity")


def test_an_edit_gives_a_tensor_that_is_laid_out_as_others_are():
    vlm = li.wrap(tiny_llava())
    with pytest.raises(SiteError, match=r"an edit of 'hook_embed' returns.*it gave .*torch.sparse_coo"):
        vlm.capture(tiny_inputs(vlm), "hook_embed", edits={"hook_embed": torch.Tensor.to_sparse})


def test_the_lowest_number_of_float64_is_near_to_itself():
    lowest = torch.full((1,), torch.finfo(torch.float64).min, dtype=torch.float64)
    assert apart(lowest, lowest) == 0
    vlm = li.wrap(tiny_model("chameleon", dtype=torch.float64))
    x = tiny_example(vlm, "chameleon")
    assert li.score(vlm, x, x.everything).logprob.isfinite().all()
