"""What single families do in a way of their own, and what does not fit them."""

import dataclasses

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.kosmos2_5.image_processing_pil_kosmos2_5 import Kosmos2_5ImageProcessorPil

import lvlm_interp as li
from lvlm_interp.compat import has_transformers, images_kwargs
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import InputError, ModelError, SiteError, VisibilityError
from tests.families import ALL, FAMILIES, need_read, tiny_example, tiny_model
from tests.families.shared.saved import CROPPED
from tests.families.shared.tiny import IMAGE, ROUNDING
from tests.saved import tokenizer

# Norms stand behind attention and MLP, by names that elsewhere stand before them.
NORMED_AFTER = {
    "exaone4_5": {},
    "molmo2": {"text_config": {**ALL["molmo2"].config["text_config"], "norm_after": True, "qk_norm_type": "olmo"}},
    "chameleon": {"swin_norm": True},
}


@pytest.mark.parametrize("name", NORMED_AFTER)
def test_what_is_added_where_norms_stand_behind_attention_and_mlp(name):
    """By names that elsewhere stand before them."""
    row = ALL[name]
    rows = {name: dataclasses.replace(row, config={**row.config, **NORMED_AFTER[name]})}
    vlm = li.wrap(tiny_model(name, rows=rows))
    x = tiny_example(vlm, name, rows=rows)
    found = vlm.capture(x, "blocks.1.hook_*")
    pre, attention, mid, mlp, post = (
        found[f"blocks.1.hook_{at}"] for at in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    )
    assert torch.allclose(pre + attention, mid, atol=1e-5) and torch.allclose(mid + mlp, post, atol=1e-5)
    assert li.check(vlm, x).ok and attention.abs().max() > 0.1


def test_pictures_of_two_sizes_are_put_into_one_row():
    """A whole picture of 64 patches and two tiles of 16, each of which attends to itself alone."""
    vlm = li.wrap(tiny_model("step3p7"))
    c = vlm.capture(tiny_example(vlm, "step3p7"), "vision.blocks.0.*")
    pattern, v, z = (c[f"vision.blocks.0.attn.hook_{at}"] for at in ("pattern", "v", "z"))
    assert pattern.shape[-2:] == (96, 96) and c["vision.blocks.0.hook_resid_post"].shape[:2] == (1, 96)
    assert pattern[..., 64:, :64].abs().max() == pattern[..., :64, 64:].abs().max() == pattern[..., 80:, :80].max() == 0
    assert torch.allclose(torch.einsum("bhqk,bkhd->bqhd", pattern, v), z, atol=1e-5)


def test_an_edit_of_a_fused_projection_reaches_the_output():
    vlm = li.wrap(tiny_model("qwen2_vl"))
    x = tiny_example(vlm, "qwen2_vl")
    site = "vision.blocks.0.attn.hook_v"
    edited = vlm.capture(x, [site, "vision.blocks.0.attn.hook_z"], edits={site: torch.zeros_like})
    assert edited["vision.blocks.0.attn.hook_z"].abs().max() == 0
    q = vlm.capture(x, "vision.blocks.0.attn.hook_q", edits={site: torch.zeros_like})["vision.blocks.0.attn.hook_q"]
    assert torch.equal(q, vlm.capture(x, "vision.blocks.0.attn.hook_q")["vision.blocks.0.attn.hook_q"])


def test_windows_of_a_tower_are_put_together():
    """Qwen2.5-VL attends window by window in its first layer: a pattern of blocks, and no reduction over windows."""
    vlm = li.wrap(tiny_model("qwen2_5_vl"))
    x = tiny_example(vlm, "qwen2_5_vl")
    c = vlm.capture(x, "vision.blocks.*.attn.*")
    windowed, whole = (c[f"vision.blocks.{i}.attn.hook_pattern"] for i in (0, 1))
    assert windowed.shape == whole.shape == (1, 4, 24, 24)
    assert (windowed == 0).any() and (whole > 0).all()
    with pytest.raises(SiteError, match="window by window"):
        vlm.capture(x, "vision.blocks.0.attn.hook_z", reduce="mean")


def test_hidden_rows_are_dropped_even_under_sliding_windows():
    """Gemma 3's windows count positions, not the rows that are left."""
    vlm = li.wrap(tiny_model("gemma3"))
    x = tiny_example(vlm, "gemma3")
    scores = li.score(vlm, x, x.hidden("image")[None])
    assert scores.rows == x.length - x.roles.count("image") - 1


def test_cross_attention_hides_all_images_or_none():
    vlm = li.wrap(tiny_model("mllama"))
    x = tiny_example(vlm, "mllama")
    ids = torch.cat([x.input_ids[:, :1], x.input_ids], 1)
    mask = x.model_inputs["cross_attention_mask"]
    given = {
        k: v for k, v in x.model_inputs.items() if k not in ("input_ids", "attention_mask", "cross_attention_mask")
    }
    two = vlm.inputs(ids, x.answer_start + 1, cross_attention_mask=torch.cat([mask[:, :1], mask], 1), **given)
    partly = two.everything
    partly[0] = False
    with pytest.raises(VisibilityError, match="only all together"):
        li.score(vlm, two, partly[None])


def idefics_processor():
    """Its own: it places the image itself, and it alone names the image token."""
    return transformers.IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), tokenizer())


def test_an_image_behind_gates():
    """Idefics cannot run without an image: hidden, its gates are shut, as its processor does before text alone."""
    need_read("idefics")
    model = tiny_model("idefics")
    del model.config.image_token_id
    with pytest.raises(ModelError, match=r"names no image token.*no processor"):
        li.wrap(model)
    vlm = li.wrap(model, idefics_processor())
    x = vlm.prepare("What is it?", Image.new("RGB", (40, 30), "red"), answer="A cat")
    assert x.where("image").sum() == 1 and li.check(vlm, x).ok
    shut = {**x.model_inputs, "image_attention_mask": torch.zeros_like(x.model_inputs["image_attention_mask"])}
    shut |= {"attention_mask": x.hidden("image")[None].long(), "position_ids": torch.arange(x.length)[None]}
    expected = vlm.model(**shut).logits[0, x.answer_positions - 1]
    seen, hidden = li.score(vlm, x, torch.stack([x.everything, x.hidden("image")])).logits()
    assert (hidden - expected).abs().max() < ROUNDING and (seen - expected).abs().max() > 0.1
    longer = vlm.prepare("What is it?", Image.new("RGB", (40, 30), "red"), answer="A cat is in it")
    given = run_to_decoder(vlm, longer)  # of the same prompt, with another answer
    assert torch.allclose(li.score(vlm, x, x.everything[None], decoder_inputs=given).logits()[0], seen, atol=ROUNDING)


KOSMOS_TYPES = ("kosmos-2", "kosmos-2.5")


@pytest.fixture
def with_kosmos_processor(monkeypatch):
    """Its own: it writes the image's tokens itself, with ids of ordinary words."""

    def made(name, dtype=torch.float32):
        processor, rows = kosmos_processor(name)
        few = {"max_patches": 16, "num_image_tokens": 4}
        for what in few.keys() & (defaults := images_kwargs(processor)).keys():
            monkeypatch.setitem(defaults, what, few[what])
        return li.wrap(tiny_model(name, dtype=dtype, rows=rows), processor)

    return made


def kosmos_processor(name):
    """And the row of a model with its vocabulary."""
    row, made = ALL[name], tokenizer()
    if name == "kosmos-2":
        processor = transformers.Kosmos2Processor(CLIPImageProcessorPil(**CROPPED), made, num_patch_index_tokens=2)
    else:
        made.add_tokens(["<md>", "</image>"])
        made.boi_token, made.eoi_token, made.image_token = "<image>", "</image>", "<s>"
        processor = transformers.Kosmos2_5Processor(
            Kosmos2_5ImageProcessorPil(patch_size={"height": 2, "width": 2}), made
        )
    processor.num_image_tokens = 4
    config = {**row.config, "text_config": {**row.config["text_config"], "vocab_size": len(made)}}
    return processor, {name: dataclasses.replace(row, config=config)}


@pytest.mark.parametrize("name", KOSMOS_TYPES)
def test_an_image_that_a_mask_marks(name, with_kosmos_processor):
    """Its tokens have ids that words have too; positions are counted from beyond the padding token."""
    vlm = with_kosmos_processor(name)
    x = vlm.prepare("What is it?", noisy_picture(), answer="A cat")
    image = x.where("image")
    assert image.sum() == 4 and torch.equal(image, x.model_inputs["image_embeds_position_mask"][0] == 1)
    assert x.images[0].whole and li.check(vlm, x).ok
    said = x.with_answer(x.input_ids[0, image].tolist(), [""] * 4, "")  # the same ids are words in an answer
    assert said.where("image").sum() == 4 and said.where("answer").sum() == 4
    own = torch.arange(x.length + 4)[None] + 1
    for y in (x, said):
        visible = torch.stack([y.everything, y.hidden("image"), y.hidden("question")])
        given = [{"attention_mask": row[None].long(), "position_ids": own[:, : y.length]} for row in visible]
        expected = [vlm.model(**{**y.model_inputs, **g}).logits[0, y.answer_positions - 1] for g in given]
        assert (li.score(vlm, y, visible).logits() - torch.stack(expected)).abs().max() < ROUNDING
        assert (expected[0] - expected[1]).abs().max() > 0.01
    answer = vlm.generate(x, 4)
    assert vlm.run(vlm.answered(x, answer))[0, x.answer_start - 1 : -1].argmax(-1).tolist() == list(answer.ids)


@pytest.mark.parametrize("name", KOSMOS_TYPES)
def test_other_pictures_where_a_mask_marks_the_image(name, with_kosmos_processor):
    vlm = with_kosmos_processor(name)
    x = vlm.prepare("What is it?", noisy_picture(), answer="A cat")
    for without in ("hidden", "blank", "noise"):
        assert li.contrast(vlm, x, without=without).delta.abs().max() > 1e-3
    half = with_kosmos_processor(name, torch.bfloat16)
    assert li.contrast(half, half.prepare("What is it?", noisy_picture(), answer="A cat")).delta.isfinite().all()


def test_noise_leaves_patches_where_they_stand():
    """Kosmos-2.5's begin with their row and column; those of padding are all 0."""
    x = tiny_example(li.wrap(tiny_model("kosmos-2.5")), "kosmos-2.5")
    own, noisy = (y.model_inputs["flattened_patches"] for y in (x, x.with_noise(0.5, torch.Generator().manual_seed(0))))
    assert torch.equal(noisy[..., :2], own[..., :2]) and noisy[0, -1].abs().max() == own[0, -1].abs().max() == 0
    assert ((noisy - own)[0, :-1, 2:] != 0).all()


@pytest.mark.parametrize("name", KOSMOS_TYPES)
def test_a_mask_that_does_not_fit_the_image(name):
    vlm, x = of(name)
    pixels = {k: v for k, v in x.model_inputs.items() if k not in x.along}
    with pytest.raises(InputError, match=r"1 images but 0 image tokens.*give image_embeds_position_mask=…"):
        vlm.inputs(x.input_ids, x.answer_start, **pixels)
    mask = x.model_inputs["image_embeds_position_mask"].clone()
    mask[0, x.images[0].positions[0]] = 0
    y = vlm.inputs(x.input_ids, x.answer_start, image_embeds_position_mask=mask, **pixels)
    for run in (vlm.run, lambda y: li.contrast(vlm, y)):
        with pytest.raises(InputError, match="3 image tokens"):
            run(y)


def test_a_norm_between_heads_and_their_projection():
    """Kosmos-2's runs over all heads at once: what is added is no sum over heads."""
    vlm, x = of("kosmos-2")
    with pytest.raises(SiteError, match="no linear output projection that heads could be split through"):
        li.direct(vlm, x)


def test_cross_attention_beside_the_blocks():
    """Idefics keeps its layers of cross-attention in a list of their own, and a vision tower of as many blocks as the
    language model's inside its decoder: blocks are those of the residual stream, as they run."""
    need_read("idefics")
    vlm, x = of("idefics")
    found = vlm.capture(x, "blocks.*")
    depth = sum(name.endswith("resid_post") for name in found)
    assert depth == 6 and [f"blocks.{i}.cross_attn.hook_z" in found for i in range(6)] == [True, False, False] * 2
    for i in range(depth - 1):
        assert torch.equal(found[f"blocks.{i}.hook_resid_post"], found[f"blocks.{i + 1}.hook_resid_pre"])


def noisy_picture():
    return Image.effect_noise((40, 30), 90).convert("RGB")


# --- bad input ------------------------------------------------------------------------------------


def of(name):
    vlm = li.wrap(tiny_model(name))
    return vlm, tiny_example(vlm, name)


def changed(vlm, x, ids, **other):
    along = {k: v for k, v in x.model_inputs.items() if k not in x.along}
    return vlm.inputs(torch.tensor([ids]), len(ids) - 3, **{**along, **other})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3", "internvl"])
@pytest.mark.parametrize("cut", [1, -1])
def test_image_tokens_that_do_not_match_the_features(name, cut):
    """One too few, as a truncated prompt has, or one too many."""
    vlm, x = of(name)
    if cut > 0 and name == "idefics3" and not has_transformers("5.21"):
        pytest.skip("transformers before 5.21 lets it pass")
    ids = x.input_ids[0].tolist()
    at = ids.index(IMAGE)
    wrong = ids[:at] + ids[at + 1 :] if cut > 0 else [*ids[:at], IMAGE, *ids[at:]]
    count = wrong.count(IMAGE)
    types = {"mm_token_type_ids": (torch.tensor([wrong]) == IMAGE).int()} if name == "qwen2_5_vl" else {}
    with pytest.raises(InputError, match=f"{count} image tokens"):
        vlm.run(changed(vlm, x, wrong, **types))
    with pytest.raises(InputError, match=f"{count} image tokens"):
        vlm.capture(changed(vlm, x, wrong, **types), "blocks.*.hook_resid_post")


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_and_image_tokens_belong_together(name):
    vlm, x = of(name)
    ids = x.input_ids[0].tolist()
    with pytest.raises(InputError, match="image tokens but no pixels"):
        vlm.inputs(x.input_ids, x.answer_start)
    with pytest.raises(InputError, match="0 image tokens"):
        changed(vlm, x, [i for i in ids if i != IMAGE])


@pytest.mark.skipif(not has_transformers("5.0"), reason="experts are computed otherwise before")
def test_experts_in_double_precision_are_refused():
    """By torch's kernel; transformers' own loop computes them."""
    need_read("qwen3_vl_moe")
    model = tiny_model("qwen3_vl_moe", dtype=torch.float64)
    if getattr(model.config.get_text_config(), "_experts_implementation", None) != "grouped_mm":
        pytest.skip("this transformers computes experts one by one")
    with pytest.raises(ModelError, match="mixtures of experts in float64"):
        li.wrap(model)
    model.config.get_text_config()._experts_implementation = "eager"
    vlm = li.wrap(model)
    x = tiny_example(vlm, "qwen3_vl_moe")
    assert li.score(vlm, x, x.everything).logprob.isfinite().all()
