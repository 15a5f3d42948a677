"""Every family gives the numbers of plain transformers: its own masks, its own positions, no image past the mask."""

import dataclasses
import math

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.kosmos2_5.image_processing_pil_kosmos2_5 import Kosmos2_5ImageProcessorPil

import lvlm_interp as li
from lvlm_interp.compat import images_kwargs
from lvlm_interp.errors import ImageError, InputError, ModelError, SiteError, VisibilityError
from lvlm_interp.methods.credit import coalitions
from lvlm_interp.model.decoder import decoder_inputs
from tests.families import FAMILIES, IMAGE, OTHERS, need_read, tiny_example, tiny_model
from tests.saved import TILE, tokenizer

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    vlm = li.wrap(tiny_model(request.param))
    return request.param, vlm, tiny_example(vlm, request.param)


def own_positions(name, vlm, x):
    """Position ids as each family makes them with everything visible; Qwen would derive others from another mask."""
    if name in QWEN:
        given = {k: x.model_inputs[k] for k in ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")}
        return vlm.model.base_model.get_rope_index(**given)[0]
    return torch.arange(x.length)[None] + (name == "paligemma")


@torch.no_grad()
def in_transformers(name, vlm, x, visible):
    """The oracle: the model itself, a 2-D mask over what is hidden, positions pinned; Mllama without its image."""
    given = {**x.model_inputs, "attention_mask": visible[None].long(), "position_ids": own_positions(name, vlm, x)}
    if name == "mllama" and not visible[x.where("image")].any():
        for image_input in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"):
            del given[image_input]
    return vlm.model(**given).logits[0, x.answer_positions - 1]


def some_coalitions(name, x):
    random = torch.rand(4, x.length, generator=torch.Generator().manual_seed(0)) < 0.6
    random |= x.where("answer", "template")
    if name == "mllama":  # its one image token stands for all of the image
        random[:, x.where("image")] = torch.tensor([True, False, True, False])[:, None]
    return torch.stack([x.hidden(), x.hidden("image"), x.hidden("question"), x.hidden("image", "question"), *random])


def test_scores_are_those_of_transformers(family):
    name, vlm, x = family
    visible = some_coalitions(name, x)
    expected = torch.stack([in_transformers(name, vlm, x, row) for row in visible])
    found = li.score(vlm, x, visible).logits()
    assert (found - expected).abs().max() < 2e-5
    assert (expected[0] - expected[1]).abs().max() > 0.1  # coalitions differ by far more


@torch.no_grad()
def hidden_from_text(vlm, x, visible):
    """The oracle of `hide_from="text"`: the family's own masks, layer by layer, less what is hidden from other rows.

    Under eager every mask is there to be read, also where a kernel would be told "causal". Image rows keep each other.
    """
    image, own = x.where("image"), torch.eye(x.length, dtype=torch.bool)

    def cut(_, args, kwargs):
        see = (kwargs["attention_mask"][0, 0] == 0) & (visible | own | image[:, None] & image)
        lowest = torch.finfo(vlm.model.dtype).min
        return args, {**kwargs, "attention_mask": torch.zeros(1, 1, *see.shape).masked_fill(~see, lowest)}

    layers = [layer.self_attn for layer in vlm.decoder.layers if hasattr(layer, "self_attn")]
    handles = [attention.register_forward_pre_hook(cut, with_kwargs=True) for attention in layers]
    try:
        return vlm.model(**x.model_inputs, use_cache=False).logits[0, x.answer_positions - 1]
    finally:
        for handle in handles:
            handle.remove()


def some_patches_hidden(x):
    """One image token hidden, all but one, one together with the question, and any of the rest."""
    image = x.where("image").nonzero().flatten()
    visible = x.hidden().repeat(3, 1)
    visible[0, image[0]] = visible[1, image[:-1]] = visible[2, image[len(image) // 2]] = False
    visible[2] &= x.hidden("question")
    return torch.cat([visible, some_coalitions("", x)])


def test_hiding_from_text_is_a_matter_of_the_familys_own_masks(family):
    name, vlm, x = family
    if name == "mllama":
        pytest.skip("its images are hidden from all by leaving out what carries them: no row of the text holds one")
    visible, eager = some_patches_hidden(x), li.wrap(tiny_model(name, "eager"))
    expected = torch.stack([hidden_from_text(eager, x, row) for row in visible])
    assert (li.score(vlm, x, visible, "text").logits() - expected).abs().max() < 2e-5
    # The control: hidden from all, image rows do not see the hidden patch either, and pass nothing of it on.
    assert (li.score(vlm, x, visible, "all").logits() - expected).abs().max() > 0.1


def test_contrast_and_credit_are_those_of_transformers(family):
    name, vlm, x = family
    seen, unseen = (in_transformers(name, vlm, x, row) for row in (x.hidden(), x.hidden("image")))
    labels = x.answer_ids[:, None]
    delta = (seen.gather(-1, labels) - unseen.gather(-1, labels))[:, 0]
    assert torch.allclose(li.contrast(vlm, x).delta, delta, atol=2e-5) and delta.abs().max() > 0.1

    split = li.credit(vlm, x)
    assert split.roles == ("question", "image")
    rows = coalitions(x, split.roles, ("template",))
    values = torch.stack(
        [in_transformers(name, vlm, x, row).log_softmax(-1).gather(-1, labels)[:, 0] for row in rows], 1
    )
    assert torch.allclose(split.full.float(), values + math.log(200), atol=2e-5)
    assert torch.allclose(split.prior + split.credits.sum(1), split.total)


def test_attribution_is_that_of_transformers(family):
    name, vlm, x = family
    if not x.images[0].has_grid:
        with pytest.raises(ImageError, match="no place in the picture"):
            li.attribute(vlm, x)
        return
    view = x.images[0]
    found = li.attribute(vlm, x, hide_from="all")

    def odds(visible):
        logits = in_transformers(name, vlm, x, visible).double()
        chosen = logits.gather(-1, x.answer_ids[:, None])[:, 0]
        return chosen - logits.scatter(-1, x.answer_ids[:, None], -torch.inf).logsumexp(-1)

    token = int(view.cells[0, 0])
    without = x.hidden()
    without[view.positions[token]] = False
    assert torch.allclose(found.values[:, 0, 0].double(), odds(x.hidden()) - odds(without), atol=5e-5)


def test_longer_answers_and_several_at_once(family):
    """What is appended gets the positions, masks and type ids that an answer has."""
    from lvlm_interp.model.score import score_answers

    name, vlm, x = family
    answers = [torch.tensor(ids) for ids in ([5], [7, 8, 10], list(range(10, 22)))]
    visible = torch.stack([x.hidden(), x.hidden("image")])
    scored = score_answers(vlm, x, visible, answers, given=decoder_inputs(vlm, x, keep_prompt=True))
    for ids, scores in zip(answers, scored, strict=True):
        y = x.with_answer(ids.tolist(), [""] * len(ids), "")
        for n, row in enumerate((y.hidden(), y.hidden("image"))):
            assert (scores.logits(n) - in_transformers(name, vlm, y, row)).abs().max() < 2e-5


def test_sites_of_every_family(family):
    name, vlm, x = family
    found = vlm.capture(x, "*")
    assert set(found) == {*vlm.sites, "logits"} and not vlm.missing
    assert {"projector.hook_out", "ln_final.hook_normalized", "vision.blocks.1.attn.hook_pattern"} <= set(found)
    assert all(f"vision.blocks.0.attn.hook_{part}" in found for part in "qkvz")
    assert ("blocks.1.cross_attn.hook_pattern" in found) == (name == "mllama")
    pattern = found["vision.blocks.0.attn.hook_pattern"]
    assert torch.allclose(pattern.sum(-1), torch.ones_like(pattern.sum(-1)), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.04), (torch.float16, 0.005)], ids=str)
def test_half_precision_is_near_to_float32(family, dtype, tolerance):
    """Every site, in the model's own type, against the same weights and pixels in float32."""
    name = family[0]
    half, single = li.wrap(tiny_model(name, dtype=dtype)), li.wrap(tiny_model(name, dtype=dtype).float())
    x, other = tiny_example(half, name), tiny_example(half, name, seed=2)
    widened = {k: v.float() for k, v in x.model_inputs.items() if v.is_floating_point()}
    found, expected = half.capture(x, "*"), single.capture(x.with_model_inputs(**widened), "*")
    assert {value.dtype for value in found.values()} == {dtype} and set(found) == {*half.sites, "logits"}

    def away(capture):  # scores hold the lowest number where a mask stands
        finite = {k: v.float() for k, v in capture.items() if not k.endswith("attn_scores")}
        return max(float((v - expected[k]).norm() / expected[k].norm()) for k, v in finite.items())

    assert away(found) < tolerance
    assert away(half.capture(other, "*")) > 5 * tolerance  # the control: another image


def test_fused_projections_are_split_into_q_k_and_v(family):
    """What meets in attention is what the sites say, where no rotary embedding or norm stands between."""
    _, vlm, x = family
    c = vlm.capture(x, "vision.blocks.0.attn.*")
    v, pattern = c["vision.blocks.0.attn.hook_v"], c["vision.blocks.0.attn.hook_pattern"]
    if v.ndim == 3:  # all patches in one row, without a batch axis
        v = v[None]
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v.reshape(pattern.shape[0], -1, *v.shape[-2:]))
    assert torch.allclose(z, c["vision.blocks.0.attn.hook_z"].reshape(z.shape), atol=1e-5)


NORMED_AFTER = {
    "exaone4_5": {},
    "molmo2": {"text_config": {**OTHERS["molmo2"].config["text_config"], "norm_after": True, "qk_norm_type": "olmo"}},
    "chameleon": {"swin_norm": True},
}


@pytest.mark.parametrize("name", NORMED_AFTER)
def test_what_is_added_where_norms_stand_behind_attention_and_mlp(name):
    """By names that elsewhere stand before them; there is no middle of the stream that a module reads."""
    row = OTHERS[name]
    rows = {name: dataclasses.replace(row, config={**row.config, **NORMED_AFTER[name]})}
    vlm = li.wrap(tiny_model(name, rows=rows))
    x = tiny_example(vlm, name, rows=rows)
    found = vlm.capture(x, "blocks.1.hook_*")
    pre, attention, mlp, post = (
        found[f"blocks.1.hook_{at}"] for at in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    assert torch.allclose(pre + attention + mlp, post, atol=1e-5) and "blocks.1.hook_resid_mid" not in found
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
    partly = two.hidden()
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
    seen, hidden = li.score(vlm, x, torch.stack([x.hidden(), x.hidden("image")])).logits()
    assert (hidden - expected).abs().max() < 2e-5 and (seen - expected).abs().max() > 0.1
    longer = vlm.prepare("What is it?", Image.new("RGB", (40, 30), "red"), answer="A cat is in it")
    given = decoder_inputs(vlm, longer)  # of the same prompt, with another answer
    assert torch.allclose(li.score(vlm, x, x.hidden()[None], given=given).logits()[0], seen, atol=2e-5)


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
    row, made = OTHERS[name], tokenizer()
    if name == "kosmos-2":
        processor = transformers.Kosmos2Processor(CLIPImageProcessorPil(**TILE), made, num_patch_index_tokens=2)
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
        visible = torch.stack([y.hidden(), y.hidden("image"), y.hidden("question")])
        given = [{"attention_mask": row[None].long(), "position_ids": own[:, : y.length]} for row in visible]
        expected = [vlm.model(**{**y.model_inputs, **g}).logits[0, y.answer_positions - 1] for g in given]
        assert (li.score(vlm, y, visible).logits() - torch.stack(expected)).abs().max() < 2e-5
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
