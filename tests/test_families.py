"""Every family gives the numbers of plain transformers: its own masks, its own positions, no image past the mask."""

import math

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.credit import coalitions
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import ImageError
from tests.families import FAMILIES, tiny_example, tiny_model
from tests.families.shared.tiny import ROUNDING

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
    return torch.stack([x.everything, x.hidden("image"), x.hidden("question"), x.hidden("image", "question"), *random])


def test_scores_are_those_of_transformers(family):
    name, vlm, x = family
    visible = some_coalitions(name, x)
    expected = torch.stack([in_transformers(name, vlm, x, row) for row in visible])
    found = li.score(vlm, x, visible).logits()
    assert (found - expected).abs().max() < ROUNDING
    assert (expected[0] - expected[1]).abs().max() > 0.1  # coalitions differ by far more


def test_a_pass_leaves_what_a_model_is(family):
    """Some keep on their modules where the positions of the last example were."""
    _, vlm, x = family
    before, found = vlm.fingerprint, vlm.capture(x, "ln_final.hook_out")
    vlm.run(x.with_answer([7, 8, 9, 10, 11], [""] * 5, ""))
    assert found.provenance.weights == vlm.fingerprint == before


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
    visible = x.everything.repeat(3, 1)
    visible[0, image[0]] = visible[1, image[:-1]] = visible[2, image[len(image) // 2]] = False
    visible[2] &= x.hidden("question")
    return torch.cat([visible, some_coalitions("", x)])


def test_hiding_from_text_is_a_matter_of_the_familys_own_masks(family):
    name, vlm, x = family
    if name == "mllama":
        pytest.skip("its images are hidden from all by leaving out what carries them: no row of the text holds one")
    visible, eager = some_patches_hidden(x), li.wrap(tiny_model(name, "eager"))
    expected = torch.stack([hidden_from_text(eager, x, row) for row in visible])
    assert (li.score(vlm, x, visible, "text").logits() - expected).abs().max() < ROUNDING
    # The control: hidden from all, image rows do not see the hidden patch either, and pass nothing of it on.
    assert (li.score(vlm, x, visible, "all").logits() - expected).abs().max() > 0.1


def test_contrast_and_credit_are_those_of_transformers(family):
    name, vlm, x = family
    seen, unseen = (in_transformers(name, vlm, x, row) for row in (x.everything, x.hidden("image")))
    labels = x.answer_ids[:, None]
    delta = (seen.gather(-1, labels) - unseen.gather(-1, labels))[:, 0]
    assert torch.allclose(li.contrast(vlm, x).delta, delta, atol=ROUNDING) and delta.abs().max() > 0.1

    split = li.credit(vlm, x)
    assert split.roles == ("question", "image")
    rows = coalitions(x, split.roles, ("template",))
    values = torch.stack(
        [in_transformers(name, vlm, x, row).log_softmax(-1).gather(-1, labels)[:, 0] for row in rows], 1
    )
    assert torch.allclose(split.full.float(), values + math.log(200), atol=ROUNDING)
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
    without = x.everything
    without[view.positions[token]] = False
    assert torch.allclose(found.values[:, 0, 0].double(), odds(x.everything) - odds(without), atol=5e-5)


def test_longer_answers_and_several_at_once(family):
    """What is appended gets the positions, masks and type ids that an answer has."""
    from lvlm_interp.engine.score import score_answers

    name, vlm, x = family
    answers = [torch.tensor(ids) for ids in ([5], [7, 8, 10], list(range(10, 22)))]
    visible = torch.stack([x.everything, x.hidden("image")])
    scored = score_answers(vlm, x, visible, answers, decoder_inputs=run_to_decoder(vlm, x, keep_prompt=True))
    for ids, scores in zip(answers, scored, strict=True):
        y = x.with_answer(ids.tolist(), [""] * len(ids), "")
        for n, row in enumerate((y.everything, y.hidden("image"))):
            assert (scores.logits(n) - in_transformers(name, vlm, y, row)).abs().max() < ROUNDING


def test_sites_of_every_family(family):
    name, vlm, x = family
    found = vlm.capture(x, "*")
    assert set(found) == {*vlm.sites, "logits"} and not vlm.missing
    assert {"projector.hook_out", "ln_final.hook_out", "vision.blocks.1.attn.hook_pattern"} <= set(found)
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
