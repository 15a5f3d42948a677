"""CAL's contrast is the two-pass computation in plain transformers, and a hidden image leaks nothing."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp import counterfactuals
from lvlm_interp.counterfactuals.contrast import _hellinger, cal_weights, token_classes
from lvlm_interp.errors import ImageError, InputError
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def vlm(request):
    return li.wrap(tiny_llava(request.param))


def two_passes(vlm, x):
    """CAL's own way: the same prompt twice, the second with False at image slots of the 2-D mask."""
    masked = x.model_inputs["attention_mask"].clone()
    masked[0, x.where("image")] = 0
    positions = torch.arange(x.length)[None]
    with torch.no_grad():
        both = [
            vlm.model(**{**x.model_inputs, "attention_mask": mask, "position_ids": positions}).logits
            for mask in (x.model_inputs["attention_mask"], masked)
        ]
    rows = [logits[0, x.answer_positions - 1] for logits in both]
    return rows, rows[0].gather(-1, x.answer_ids[:, None])[:, 0] - rows[1].gather(-1, x.answer_ids[:, None])[:, 0]


def test_delta_is_the_two_pass_computation(vlm):
    x = tiny_inputs(vlm)
    (seen, unseen), delta = two_passes(vlm, x)
    found = li.contrast(vlm, x)
    assert torch.allclose(found.delta, delta, atol=1e-5) and delta.abs().max() > 1e-2
    p, q = seen.softmax(-1), unseen.softmax(-1)
    assert torch.allclose(found.hellinger, (1 - (p * q).sqrt().sum(-1)).sqrt(), atol=1e-3)
    nats = (p.log() - q.log()).gather(-1, x.answer_ids[:, None])[:, 0]
    assert torch.allclose(found.delta_nats, nats, atol=1e-5)


def test_what_is_subtracted_is_of_the_two_passes_too(vlm):
    x = tiny_inputs(vlm)
    found, (both, _) = li.contrast(vlm, x), two_passes(vlm, x)
    told = ((found.with_logit, found.with_logprob), (found.without_logit, found.without_logprob))
    for logits, numbers in zip(both, told, strict=True):
        for expected, own in zip((logits, logits.log_softmax(-1)), numbers, strict=True):
            assert torch.allclose(own, expected.gather(-1, x.answer_ids[:, None])[:, 0], atol=1e-5)


def test_small_distances_are_not_lost_to_rounding():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 50_000, generator=generator) * 3
    b = a + torch.randn(8, 50_000, generator=generator) * 1e-3
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    expected = ((p.sqrt() - q.sqrt()).square().sum(-1) / 2).sqrt()
    assert torch.allclose(_hellinger(a, b).double(), expected, rtol=1e-3, atol=0)


def test_delta_on_the_reference_model(reference, purple_banana):
    """Real logits are of size 30 and go through 30 layers: float32 itself is good to a few 1e-5 there."""
    _, delta = two_passes(reference, purple_banana)
    found = li.contrast(reference, purple_banana)
    assert (found.delta - delta).abs().max() < 1e-6 * found.with_logit.abs().max() * 4
    assert delta.abs().max() > 1


def test_another_image_under_the_mask_changes_nothing(vlm):
    x = tiny_inputs(vlm)
    other = x.with_model_inputs(pixel_values=-x.model_inputs["pixel_values"])
    a, b = li.contrast(vlm, x), li.contrast(vlm, other)
    assert torch.equal(a.without_logit, b.without_logit)
    assert not torch.equal(a.with_logit, b.with_logit)


def test_cal_weights_by_hand():
    delta = torch.tensor([-2.0, 3.0, 9.0, 0.0])  # clamped: 1 3 5 1
    assert torch.allclose(cal_weights(delta), torch.tensor([2.0, 3.0, 3.0, 3.0]))
    assert torch.equal(cal_weights(torch.tensor([7.0])), torch.tensor([5.0]))
    assert torch.equal(cal_weights(delta, low=-10, high=10, window=1), delta)
    rows = torch.stack([delta, delta.flip(0)])
    assert torch.equal(cal_weights(rows)[0], cal_weights(delta))  # one answer never leaks into another


def test_cal_weights_at_the_edge_of_the_answer():
    """CAL's code averages over the whole row of a batch: what stands beside the answer counts at its edges."""
    model = tiny_llava()
    with torch.no_grad():
        model.lm_head.weight *= 4  # so that differences reach into the range to which weights are cut
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    ended = x.with_answer([*x.answer_ids.tolist(), vlm.stops()[0]], [""] * 4, "")
    seen, positions = ended.model_inputs["attention_mask"], torch.arange(ended.length)[None]
    unseen = seen * ~ended.where("image")
    rows = []
    for mask in (seen, unseen):  # as CAL runs it: keys of image slots masked, positions pinned
        with torch.no_grad():
            made = {**ended.model_inputs, "attention_mask": mask, "position_ids": positions}
            rows.append(vlm.model(**made).logits[:, :-1])
    delta = (rows[0] - rows[1]).gather(-1, ended.input_ids[:, 1:, None])[..., 0]
    pool = torch.nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)
    official = pool(delta.clamp(1, 5))[0, x.answer_start - 1 : -1]
    row, answer = li.contrast(vlm, x, edge="row"), li.contrast(vlm, x)
    assert torch.allclose(row.weights, official, atol=1e-4)
    assert torch.allclose(answer.weights, cal_weights(answer.delta)) and torch.equal(row.delta, answer.delta)
    assert (row.weights - answer.weights)[[0, -1]].abs().max() > 1e-2  # the control: they differ, at the edges only
    assert torch.allclose(row.weights[1:-1], answer.weights[1:-1])
    assert row.provenance.parameters["edge"] == "row"
    both = li.contrast(vlm, x, ["hidden", "blank"], edge="row") if x.images[0].picture else {"hidden": row}
    assert torch.equal(both["hidden"].weights, row.weights)
    with pytest.raises(InputError, match="edge is 'answer' or 'row'"):
        inspect.unwrap(li.contrast)(vlm, x, edge="batch")


def test_classes():
    assert token_classes(torch.tensor([1.0, 0.9, -0.9, -1.0])) == (
        "correlated",
        "irrelevant",
        "irrelevant",
        "contradictory",
    )
    assert token_classes(torch.tensor([0.5]), threshold=0.5) == ("correlated",)


def test_dropped_is_a_text_only_prompt(vlm):
    x = tiny_inputs(vlm)
    keep = ~x.where("image")
    with torch.no_grad():
        logits = vlm.model(input_ids=x.input_ids[:, keep]).logits[0]
    rows = logits[-len(x.answer_ids) - 1 : -1].gather(-1, x.answer_ids[:, None])[:, 0]
    found = li.contrast(vlm, x, without="dropped")
    assert torch.allclose(found.without_logit, rows, atol=1e-5)
    assert not torch.allclose(found.without_logit, li.contrast(vlm, x).without_logit, atol=1e-3)


def test_noise_is_vcds(vlm):
    """VCD's schedule leaves .863 of the signal and .505 of noise at step 500."""
    x = tiny_inputs(vlm)
    made = counterfactuals.applied(counterfactuals.noise(500), vlm, x, seed=3).model_inputs["pixel_values"]
    told = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(3)))
    drawn = np.random.default_rng(told).standard_normal(x.model_inputs["pixel_values"].shape, np.float32)
    assert abs(drawn.std() - 1) < 0.05
    assert torch.allclose(made, 0.863 * x.model_inputs["pixel_values"] + 0.505 * torch.from_numpy(drawn), atol=5e-3)
    again = counterfactuals.applied(counterfactuals.noise(500), vlm, x, seed=3).model_inputs["pixel_values"]
    assert torch.equal(made, again)
    assert not torch.equal(
        made, counterfactuals.applied(counterfactuals.noise(500), vlm, x, 4).model_inputs["pixel_values"]
    )
    with pytest.raises(InputError, match="between 0 and 999"):
        counterfactuals.noise(1000)


def test_processed_pixels_cannot_be_blurred(vlm):
    with pytest.raises(ImageError, match="original picture"):
        li.contrast(vlm, tiny_inputs(vlm), without="blur")


def test_names_that_are_not_known(vlm):
    with pytest.raises(InputError, match="no counterfactual 'masked'"):
        li.contrast(vlm, tiny_inputs(vlm), without="masked")
    text = vlm.inputs(torch.tensor([[1, 20, 21, 22]]), 3)
    with pytest.raises(InputError, match="no image"):
        li.contrast(vlm, text)


def test_side_by_side_none_takes_the_place_of_another(vlm):
    with pytest.raises(InputError, match="different names"):
        li.contrast(vlm, tiny_inputs(vlm), [counterfactuals.noise(10), counterfactuals.noise(900)])
    with pytest.raises(InputError, match=r"without=\[\] names no counterfactual"):
        li.contrast(vlm, tiny_inputs(vlm), [])
    named = [dataclasses.replace(counterfactuals.noise(n), name=f"noise {n}") for n in (10, 900)]
    assert list(li.contrast(vlm, tiny_inputs(vlm), named)) == ["noise 10", "noise 900"]


# --- pictures, on the reference model --------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(reference, purple_banana):
    """Every picture counterfactual, as the model gets it: pixels `[3, 112, 112]` in 0 … 1."""
    processor = reference.processor.image_processor
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))

    def made(counterfactual, seed=0):
        changed = counterfactuals.applied(counterfactual, reference, purple_banana, seed)
        return changed.model_inputs["pixel_values"][0] * std + mean

    return made


def test_blank_is_one_colour(pictures):
    blank, original = pictures(counterfactuals.blank()), pictures(counterfactuals.blur(0.0))
    assert blank.flatten(1).std(1).max() < 1e-3
    assert torch.allclose(blank.mean((1, 2)), original.mean((1, 2)), atol=5e-3)


def test_blur_keeps_the_mean_and_takes_the_detail(pictures):
    sharp, soft = pictures(counterfactuals.blur(0.0)), pictures(counterfactuals.blur(0.1))
    assert soft.std() < 0.7 * sharp.std()


def test_black_box_blackens_its_box_only(pictures):
    before, after = pictures(counterfactuals.blur(0.0)), pictures(counterfactuals.black_box((10, 20, 50, 60)))
    assert after[:, 20:60, 10:50].abs().max() < 1e-2
    outside = torch.ones(112, 112, dtype=torch.bool)
    outside[20:60, 10:50] = False
    assert torch.equal(before[:, outside], after[:, outside])
    with pytest.raises(ImageError, match="does not lie in the image"):
        pictures(counterfactuals.black_box((100, 0, 120, 10)))
    with pytest.raises(ImageError, match="less than one of them"):
        pictures(counterfactuals.black_box((0.1, 0.1, 0.2, 0.2)))
    with pytest.raises(InputError, match="no image 1: the prompt has 1"):
        pictures(counterfactuals.black_box((0, 0, 10, 10), image=1))


def test_crop_and_swap(pictures, purple_banana):
    from lvlm_interp.reference import make_scene

    assert not torch.equal(pictures(counterfactuals.crop(), 0), pictures(counterfactuals.crop(), 1))
    assert torch.equal(pictures(counterfactuals.crop(), 1), pictures(counterfactuals.crop(), 1))
    same = pictures(counterfactuals.swap(purple_banana.images[0].picture))
    assert torch.equal(same, pictures(counterfactuals.blur(0.0)))
    assert not torch.equal(pictures(counterfactuals.swap(make_scene(1).image)), same)


def test_several_side_by_side(reference, purple_banana):
    names = ["hidden", "dropped", "blank"]
    several = li.contrast(reference, purple_banana, without=names)
    assert list(several) == names and list(several.table().columns) == names
    assert [one.without for one in several.values()] == names
    assert [one.provenance.parameters["without"] for one in several.values()] == names
    alone = li.contrast(reference, purple_banana, without="blank")
    assert torch.equal(several["blank"].delta, alone.delta)
    assert len(several.to_frame()) == 3 * len(purple_banana.answer_tokens)
    assert several["hidden"].classes[0] == "correlated"


def test_numbers_of_a_contrast_are_numbers(reference, purple_banana):
    found = li.contrast(reference, purple_banana)
    for name in ("delta", "with_logprob", "weights"):
        with pytest.raises(InputError, match=f"Contrast.{name} holds NaN"):
            dataclasses.replace(found, **{name: getattr(found, name) * torch.nan})


@pytest.mark.parametrize("name", ["delta", "delta_nats"])
def test_a_difference_that_is_none_is_refused(name):
    """Of a file that somebody wrote."""
    vlm = li.wrap(tiny_llava())
    found = li.contrast(vlm, tiny_inputs(vlm))
    with pytest.raises(InputError, match=rf"Contrast\.{name} is not what is with the image less what is without it"):
        dataclasses.replace(found, **{name: getattr(found, name) + 0.1})
