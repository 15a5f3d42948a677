"""Heatmaps of derivatives, attention and what is read out, each equal to a slow, obvious version."""

import dataclasses

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.attribution.value import VALUES, values_of
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.methods.readout import rank_filter
from tests import saved
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def chat():
    """With a tokenizer of bytes."""
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def exact():
    return li.wrap(tiny_llava(dtype=torch.float64))


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("unit", ["token", "answer"])
def test_the_value_with_a_graph_is_the_value(exact, name, unit):
    """Alternatives of several tokens have a pass of their own."""
    x = tiny_inputs(exact)
    asked = asked_of(exact, x, value=name, unit=unit)
    of = Differentiable(asked)
    found = of(of.features)
    assert torch.allclose(found[0], of.valued.numbers[0, :, 0], atol=1e-5) and found.requires_grad


def test_gradients_are_those_of_finite_differences(exact):
    x = tiny_inputs(exact)
    of = Differentiable(asked_of(exact, x, value="odds", unit="answer"))
    step, way = 1e-3, torch.randn(of.features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there, back = (float(of(of.features + sign * step * way)[0, 0].detach()) for sign in (1, -1))
    apart = (there - back) / (2 * step)
    leaf = of.features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(leaf)[0, 0], leaf)
    assert float((gradient * way).sum()) == pytest.approx(apart, rel=1e-2)  # norms compute in float32
    lengths = li.attribute(exact, x, "gradient", value="odds", unit="answer")
    assert torch.allclose(lengths.values.flatten().double(), gradient[0].norm(dim=-1), rtol=1e-5)
    times = li.attribute(exact, x, "grad_x_input", value="odds", unit="answer")
    assert torch.allclose(times.values.flatten().double(), (gradient * of.features)[0].sum(-1), rtol=1e-5)
    assert torch.allclose(times.image_total, times.values.sum((1, 2)))


def test_integrated_gradients_add_up_the_finer_the_way(exact):
    """From the mean token; from zero, where a norm is nearly a jump, they do not, and say so."""
    x = tiny_inputs(exact)
    rough, fine, zero = (
        li.attribute(exact, x, "integrated_gradients", baseline=baseline, steps=steps, unit="answer")
        for baseline, steps in (("mean", 1), ("mean", 64), ("zero", 64))
    )
    assert fine.residual.abs().max() < 1e-2 * fine.image_total.abs().max() < rough.residual.abs().max()
    of = Differentiable(asked_of(exact, x, unit="answer"))
    for found, start in ((fine, of.features.mean(1, keepdim=True)), (zero, torch.zeros_like(of.features))):
        total = float((of(of.features) - of(start.expand_as(of.features)))[0, 0].detach())
        assert float(found.image_total) == pytest.approx(total, rel=1e-5)
        assert torch.allclose(found.residual, found.image_total - found.values.sum((1, 2)), atol=1e-5)
    assert zero.residual.abs().max() > 0.1 * zero.image_total.abs().max() and "misses its sum by" in zero.note


def test_noise_is_drawn_from_its_seed(exact):
    x = tiny_inputs(exact)
    one, again, other, plain = (
        li.attribute(exact, x, "gradient", unit="answer", **options).values
        for options in ({"noise": 0.1, "samples": 3}, {"noise": 0.1, "samples": 3}, {"noise": 0.1, "seed": 1}, {})
    )
    assert torch.equal(one, again) and not torch.allclose(one, other) and not torch.allclose(one, plain)


# --- attention --------------------------------------------------------------------------------------------------------


def patterns(vlm, x):
    """All layers' attention, heads averaged, `[layer, row, key]`."""
    found = vlm.capture(x, "blocks.*.attn.hook_pattern")
    return torch.stack([value[0].double().mean(0) for name, value in found.items() if name != "logits"])


def test_attention_is_that_of_the_rows_that_predict(vlm):
    x = tiny_inputs(vlm)
    whole = patterns(vlm, x)
    rows = whole.mean(0)[x.answer_start - 1 : -1][:, x.images[0].positions]
    assert torch.allclose(li.attribute(vlm, x, "attention").values.flatten(1).double(), rows, atol=1e-5)
    last = li.attribute(vlm, x, "attention", layers=-1, unit="answer").values.flatten().double()
    expected = whole[-1][x.answer_start - 1 : -1][:, x.images[0].positions].mean(0)
    assert torch.allclose(last, expected, atol=1e-5)
    assert not torch.allclose(last, rows.mean(0), atol=1e-3)


def test_sinks_are_left_out_on_request(vlm, monkeypatch):
    """Tokens that all text behind the image looks at; with a limit of once the median, half of them are."""
    x = tiny_inputs(vlm)
    at = x.images[0].positions
    plain, cleared = (li.attribute(vlm, x, "attention", drop_sinks=drop).values.flatten(1) for drop in (False, True))
    assert torch.equal(plain, cleared)  # there is none
    monkeypatch.setattr("lvlm_interp.heatmaps.methods.attention.SINK", 1.0)
    cleared = li.attribute(vlm, x, "attention", drop_sinks=True).values.flatten(1)
    looked = patterns(vlm, x).mean(0)[int(at.max()) + 1 :, at].mean(0)
    sinks = looked > looked.median()
    assert 0 < sinks.sum() < len(at) and (cleared[:, sinks] == 0).all()
    assert torch.equal(cleared[:, ~sinks], plain[:, ~sinks])


def test_rollout_is_the_product_of_layers(vlm):
    x = tiny_inputs(vlm)
    flow = torch.eye(x.length, dtype=torch.float64)
    for layer in patterns(vlm, x):
        flow = (layer + torch.eye(x.length)) / 2 @ flow
    expected = flow[x.answer_start - 1 : -1][:, x.images[0].positions]
    assert torch.allclose(li.attribute(vlm, x, "rollout").values.flatten(1).double(), expected, atol=1e-5)
    assert expected.std() > 1e-4


def test_attention_against_a_question_about_nothing(chat):
    from PIL import Image

    picture = Image.linear_gradient("L").resize((28, 28)).convert("RGB")
    x = chat.prepare("is it a cat?", picture, answer="a cat")
    found = li.attribute(chat, x, "relative_attention", generic="is it?")
    other = chat.prepare("is it?", picture)
    idle = patterns(chat, other).mean(0)[-1, other.images[0].positions]
    rows = patterns(chat, x).mean(0)[x.answer_start - 1 : -1][:, x.images[0].positions]
    assert torch.allclose(found.values.flatten(1).double(), rows / idle, rtol=1e-4)
    same = li.attribute(chat, x, "relative_attention", generic="is it a cat?")
    assert torch.allclose(same.values[0], torch.ones(2, 2), rtol=1e-3)  # the same row, divided by itself
    assert not torch.allclose(found.values[0], torch.ones(2, 2), rtol=1e-2)
    processed = dataclasses.replace(x, images=(dataclasses.replace(x.images[0], picture=None),))
    with pytest.raises(ImageError, match="prepare the example"):
        li.attribute(chat, processed, "relative_attention")


# --- what is read out -------------------------------------------------------------------------------------------------


def test_direct_is_what_heads_read_from_a_patch(vlm):
    x = tiny_inputs(vlm)
    found, apart = li.attribute(vlm, x, "direct"), li.direct(vlm, x)
    expected = apart.sources.sum((1, 2))[:, x.images[0].positions]
    assert torch.allclose(found.values.flatten(1), expected.float(), atol=1e-5)
    frame = apart.to_frame()["reads image"]
    assert found.image_total.tolist() == pytest.approx(frame.tolist(), rel=1e-4)


def test_direct_against_a_foil(chat):
    from PIL import Image

    x = chat.prepare("is it?", Image.linear_gradient("L").resize((28, 28)).convert("RGB"), answer="c")
    found = li.attribute(chat, x, "direct", against="n")
    other = found.alternative_ids[0][0][0]
    expected = li.direct(chat, x, against=other).sources.sum((1, 2))[:, x.images[0].positions]
    assert torch.allclose(found.values.flatten(1), expected.float(), atol=1e-5)
    longer = chat.prepare("is it?", x.images[0].picture, answer="a cat")
    with pytest.raises(InputError, match="single tokens"):
        li.attribute(chat, longer, "direct", against="no", unit="answer")


def test_a_lens_reads_a_word_at_the_patches(vlm):
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, "lens")
    for n, token in enumerate(x.answer_ids.tolist()):
        theirs = li.lens(vlm, x, range(1, 4), "image", target=token).target_logprob[0].amax(0).exp()
        assert torch.allclose(found.values[n].flatten(), theirs.float(), atol=1e-6)
    one = li.attribute(vlm, x, "lens", layers=1)
    assert not torch.allclose(one.values, found.values, atol=1e-4)


def test_a_token_activation_map_step_by_step(vlm):
    """One token after the other, in plain loops."""
    x = tiny_inputs(vlm)
    states = vlm.capture(x, "ln_final.hook_out")["ln_final.hook_out"][0].double()
    weight, ids = vlm.readout.weight.double(), x.input_ids[0].tolist()
    image = x.images[0].positions.tolist()
    first = image[-1] + 1

    def raw(place):
        return torch.stack([(states[p] @ weight[ids[place]]).relu() for p in image])

    found = li.attribute(vlm, x, "tam", filtered=False)
    for n, place in enumerate(range(x.answer_start, x.length)):
        shares = {
            p: float((states[p] @ weight[ids[place]]).relu()) for p in range(first, place) if ids[p] != ids[place]
        }
        noise = sum(share * raw(p) for p, share in shares.items()) / sum(shares.values())
        scale = (raw(place) @ noise) / (noise @ noise)
        expected = (raw(place) - scale * noise).relu()
        assert torch.allclose(found.values[n].flatten().double(), expected, atol=1e-4)
        assert not torch.allclose(raw(place), expected, atol=1e-2)


def test_the_rank_filter_takes_out_what_stands_alone():
    flat = torch.ones(6, 6, dtype=torch.float64)
    spot = flat.clone()
    spot[2, 3] = 9
    assert torch.allclose(rank_filter(flat), flat)
    assert rank_filter(spot).max() < 3
    window = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 30]], dtype=torch.float64)
    middle = window.flatten().sort().values
    width = float(middle.std() / middle.mean())
    shares = torch.tensor([np.exp(-((r - 4) ** 2) / (2 * width**2)) for r in range(9)])
    assert float(rank_filter(window)[1, 1]) == pytest.approx(float(shares @ middle / shares.sum()))


def test_values_that_a_method_measures_by_itself_need_no_alternatives(vlm):
    """Attention is what it is, whatever the value; asked for another one, the map says what it measures."""
    x = tiny_inputs(vlm)
    found = li.attribute(vlm, x, "attention", value="odds")
    assert found.value == "attention" and found.alternatives == ()
    numbers = values_of(vlm, x, x.everything[None], asked_of(vlm, x, value="odds").target)
    assert numbers.alternatives != ()


def test_an_activation_map_reads_the_model_s_own_logits(vlm, monkeypatch):
    """Scales of logits are the model's; tokens of another picture are no text."""
    from tests.families import tiny_example, tiny_model

    scaled = li.wrap(tiny_model("cohere_compass"))
    x = tiny_example(scaled, "cohere_compass")
    logits = scaled.run(x)[0].double()
    at, first = x.images[0].positions, int(x.images[0].positions.max()) + 1
    alone = dataclasses.replace(x, roles=tuple("image" if p < x.answer_start else r for p, r in enumerate(x.roles)))
    found = li.attribute(scaled, alone, "tam", filtered=False, target=0, unit="token")
    assert torch.allclose(found.values.flatten().double(), logits[at, x.answer_ids[0]].relu(), atol=1e-5)
    assert first < x.answer_start  # what stands between counts as another picture's here


def test_words_of_what_does_not_add_up(chat):
    from PIL import Image

    from lvlm_interp.inputs.words import parts_of

    x = chat.prepare("is it?", Image.new("RGB", (28, 28), "red"), answer="a cat")
    words = parts_of(x, "word", chat.decode)
    for name in ("attention", "lens", "tam", "gradient"):
        found = li.attribute(chat, x, name)
        with pytest.raises(InputError, match="are not added up"):
            found.words(words)
    assert li.attribute(chat, x, "direct").words(words).values.shape[0] == len(words)


def test_maps_that_measure_something_else_have_no_difference(vlm):
    x = tiny_inputs(vlm)
    one = li.attribute(vlm, x, "attention", layers=0)
    for other in (li.attribute(vlm, x, "rollout"), li.attribute(vlm, x, "attention", layers=1)):
        with pytest.raises(InputError, match="cannot be subtracted"):
            one - other
    drawn = li.attribute(vlm, x, "banzhaf", seed=1) - li.attribute(vlm, x, "banzhaf", seed=2)
    assert "value difference" in drawn.to_frame() and "error difference" not in drawn.to_frame()


def test_a_foil_of_a_value_that_compares_with_nothing(vlm):
    with pytest.raises(InputError, match="compares with nothing"):
        li.attribute(vlm, tiny_inputs(vlm), value="logit", against="<9>")


@pytest.mark.parametrize("method", ["gradient", "grad_x_input", "integrated_gradients"])
def test_gradients_under_inference_mode(method):
    vlm = li.wrap(tiny_llava())
    with torch.inference_mode():
        x = tiny_inputs(vlm)
        within = li.attribute(vlm, x, method, unit="answer")
    assert torch.equal(within.values, li.attribute(vlm, x, method, unit="answer").values)


def test_noise_does_not_depend_on_torch_s_default(vlm):
    x = tiny_inputs(vlm)
    plain = li.attribute(vlm, x, "gradient", noise=0.1, samples=2)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.allclose(li.attribute(vlm, x, "gradient", noise=0.1, samples=2).values, plain.values)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"error": torch.ones(1, 2, 2)},
        {"error": -torch.ones(3, 2, 2)},
        {"residual": torch.ones(0)},
        {"boxes": torch.ones(2, 2, 4) * torch.tensor([2.0, 0, 1, 1])},
    ],
)
def test_fields_of_a_map_fit_each_other(vlm, change):
    found = li.attribute(vlm, tiny_inputs(vlm), "shapley")
    for name, value in change.items():  # as a file may have it
        object.__setattr__(found, name, value)
    with pytest.raises(InputError, match=r"PatchMap|boxes"):
        found.__post_init__()
