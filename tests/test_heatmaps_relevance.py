"""Heatmaps of relevance: attention that counts for the value, handed on through decoder and vision tower."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.errors import ImageError, InputError, ModelError
from lvlm_interp.heatmaps.differentiable import Differentiable
from lvlm_interp.heatmaps.methods.relevance import Relevance, counting, need_one_pass
from lvlm_interp.heatmaps.tower import places_of
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

PATTERN = "blocks.*.attn.hook_pattern"
TOWER = f"vision.{PATTERN}"


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def exact():
    return li.wrap(tiny_llava(dtype=torch.float64))


def with_graph(vlm, x, value, sites=PATTERN):
    """All patterns of a pass, and their derivatives of what a function makes of the answer's logits."""
    found = vlm.capture(x, sites, grad=True)
    kept = [one for name, one in found.items() if name != "logits"]
    return kept, torch.autograd.grad(value(found["logits"][0, x.answer_start - 1 : -1].double()), kept)


def counted(pattern, derivative):
    return (derivative * pattern).relu().mean(1)[0]


def all_rows(kept, derivatives, counted=counted):
    """R, whole, layer after layer."""
    rows = torch.eye(kept[0].shape[-1], dtype=torch.float64)
    for pattern, derivative in zip(kept, derivatives, strict=True):
        rows = rows + counted(pattern, derivative).double() @ rows
    return rows.detach()


def logodds(x, part):
    def value(rows):
        chances = rows[part].log_softmax(-1)[x.answer_ids[part]]
        return chances - (1 - chances.exp()).log()

    return value


def flows_of(vlm, x, **how):
    return Relevance(**how).flows(Differentiable(asked_of(vlm, x)))


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_relevance_is_that_of_whole_matrices(exact, at_once):
    x = tiny_inputs(exact)
    found, flows = li.attribute(exact, x, "relevance"), flows_of(exact, x, layers_at_once=at_once)
    for part in range(3):
        kept, derivatives = with_graph(exact, x, logodds(x, part))
        expected = all_rows(kept, derivatives)[x.answer_start - 1 + part]
        assert (flows[part] - expected).abs().max() < 1e-8
        image = expected[x.images[0].positions]
        assert torch.allclose(found.values[part].flatten(), image.float(), rtol=1e-6) and image.std() > 1e-3
        assert float(found.image_total[part]) == pytest.approx(float(image.sum()))


def test_negative_products_and_means_before_them_are_another_thing(exact):
    """Controls: without relu, with relu behind the mean over heads, and with the other order of layers."""
    x = tiny_inputs(exact)
    kept, derivatives = with_graph(exact, x, logodds(x, 1))
    row = x.answer_start
    flow = flows_of(exact, x)[1]
    for other in (lambda a, d: (d * a).mean(1)[0], lambda a, d: (d * a).mean(1)[0].relu(), lambda a, d: a.mean(1)[0]):
        assert (all_rows(kept, derivatives, other)[row] - flow).abs().max() > 1e-3
    assert (all_rows(kept[::-1], derivatives[::-1])[row] - flow).abs().max() > 1e-3


def test_what_speaks_against_the_value_does_not_count():
    pattern = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]])
    derivative = torch.tensor([[[-2.0, 2.0], [-4.0, -4.0]], [[1.0, 9.0], [-1.0, 2.0]]])
    assert counting(pattern, derivative).tolist() == [[0.5, 0.5], [0.0, 0.5]]
    assert counting(pattern.half(), derivative.half()).dtype == torch.float32


@pytest.mark.parametrize("value", ["odds", "difference", "logit"])
def test_relevance_of_other_values_and_parts(exact, value):
    """A part of several tokens: the derivative of their value, and the mean of their rows."""
    x = tiny_inputs(exact)
    one = li.attribute(exact, x, "relevance", value=value)
    assert one.value == value and one.values.min() >= 0 and bool(one.alternatives) == (value != "logit")
    kept, derivatives = with_graph(exact, x, lambda rows: rows[[0, 1, 2], x.answer_ids].sum())
    rows = all_rows(kept, derivatives)[x.answer_start - 1 : -1]
    whole = li.attribute(exact, x, "relevance", value="logit", unit="answer")
    assert torch.allclose(whole.values.flatten(), rows.mean(0)[x.images[0].positions].float(), rtol=1e-6)


def test_relevance_of_alternatives_that_have_a_pass_of_their_own(exact):
    with pytest.raises(InputError, match=r"has 3 tokens, so a pass of its own.*'integrated_gradients'"):
        li.attribute(exact, tiny_inputs(exact), "relevance", value="odds", unit="answer")


def test_relevance_needs_every_layer_s_attention(vlm):
    hybrid = li.wrap(tiny_model("qwen3_5"))
    with pytest.raises(ModelError, match=r"carries a state from position to position beside it; 'integr"):
        li.attribute(hybrid, tiny_example(hybrid, "qwen3_5"), "relevance")
    with pytest.raises(InputError, match="1 or more"):
        li.attribute(vlm, tiny_inputs(vlm), "relevance", layers_at_once=0)


def test_relevance_of_an_unreadable_layer(monkeypatch):
    vlm = li.wrap(tiny_llava())
    reason = "LlamaAttention computes attention by itself"
    monkeypatch.setitem(vlm.missing, "blocks.1.attn.hook_pattern", reason)
    with pytest.raises(ModelError, match=rf"every layer's attention, and {reason}; 'integrated_gradients'"):
        li.attribute(vlm, tiny_inputs(vlm), "relevance")


def test_relevance_where_weights_are_frozen_and_nothing_is_recorded(vlm):
    x = tiny_inputs(vlm)
    plain = li.attribute(vlm, x, "relevance", unit="answer").values
    frozen = li.wrap(tiny_llava().requires_grad_(False))
    assert torch.equal(li.attribute(frozen, x, "relevance", unit="answer").values, plain)
    assert all(weight.grad is None for weight in vlm.model.parameters())
    with torch.inference_mode():
        within = li.attribute(vlm, tiny_inputs(vlm), "relevance", unit="answer").values
    assert torch.equal(within, plain)
    half = li.wrap(tiny_llava(dtype=torch.bfloat16))
    assert torch.allclose(li.attribute(half, tiny_inputs(half), "relevance", unit="answer").values, plain, rtol=0.3)


@pytest.mark.parametrize("at_once", [None, 1])
def test_relevance_through_the_tower_is_that_of_whole_matrices(exact, at_once):
    """Its last layer is not used; its first token is none of the language model's."""
    x = tiny_inputs(exact)
    flows = flows_of(exact, x, tower=True, layers_at_once=at_once)
    for part in range(3):
        found = exact.capture(x, [PATTERN, TOWER], grad=True)
        value = logodds(x, part)(found["logits"][0, x.answer_start - 1 : -1].double())
        inner = [one for name, one in found.items() if name.startswith("blocks.")]
        outer = found["vision.blocks.0.attn.hook_pattern"]
        *derivatives, last = torch.autograd.grad(value, [*inner, outer])
        row = all_rows(inner, derivatives)[x.answer_start - 1 + part]
        entered = torch.cat([torch.zeros(1), row[x.images[0].positions]])
        expected = (entered @ all_rows([outer], [last]))[1:]
        assert (flows[part, x.images[0].positions] - expected).abs().max() < 1e-8
        assert (entered[1:] - expected).abs().max() > 1e-4
    seen = flows[:, x.images[0].positions]
    assert (flows != 0).sum() == (seen != 0).sum()


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llava", [-1, 0, 1, 2, 3]),
        ("paligemma", [0, 1, 2, 3]),
        ("gemma3", [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]),
        ("internvl", [-1, 0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]),
        ("qwen2_vl", [number // 4 for number in range(24)]),
    ],
)
def test_places_of_a_tower_are_found_by_derivatives(family, expected):
    """Blocks in rows of the picture, or one behind the other."""
    model = li.wrap(tiny_model(family))
    x = tiny_example(model, family)
    places = places_of(asked_of(model, x))
    assert places.tokens.tolist() == expected
    flows = torch.rand(2, x.length, dtype=torch.float64)
    back = places.left(places.entered(flows), x.length)
    assert torch.allclose(back[:, places.positions], flows[:, places.positions])
    found = li.attribute(model, x, "relevance", tower=True, unit="answer")
    assert found.values.min() >= 0 and found.values.max() > 0 and found.provenance.parameters["tower"]


def test_a_tower_of_tiles_and_of_several_pictures(vlm):
    tiles = li.wrap(tiny_model("llava_next"))
    x = tiny_example(tiles, "llava_next")
    places = places_of(asked_of(tiles, x))
    by_tile = places.tokens.view(3, 5)
    assert (by_tile[:, 0] == -1).all()
    shown = by_tile[:, 1:].flatten().tolist()
    assert len({*shown}) == 12 and len(places.positions) == 14  # two stand for the ends of rows
    two = tiny_inputs(vlm, images=2)
    second = places_of(asked_of(vlm, two, image=1)).tokens
    assert second.tolist() == [-1] * 6 + [0, 1, 2, 3]


def by_piece(model, x):
    """The patterns of each layer of the tower, and the derivatives of the first token's log-odds by them."""
    pieces = {name: [] for name in model.sites if name.startswith("vision.") and name.endswith("hook_pattern")}
    keeps = {name: (lambda value, some=some: some.append(value) or value) for name, some in pieces.items()}
    with model.visiting(keeps), torch.enable_grad():
        value = logodds(x, 0)(model.call(x.model_inputs)[0, x.answer_start - 1 : -1].double())
    for name, some in pieces.items():
        yield name, some, torch.autograd.grad(value, some, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize(("family", "places", "most"), [("qwen2_5_vl", 24, 2), ("llava_next", 15, 1)])
def test_relevance_through_windows_and_tiles(family, places, most):
    """As in one matrix for each layer, in which those of windows, and of tiles, stand side by side."""
    model = li.wrap(tiny_model(family, dtype=torch.float64))
    x = tiny_example(model, family)
    whole, counts = torch.eye(places, dtype=torch.float64), []
    for _, patterns, derivatives in by_piece(model, x):
        counts.append(len(patterns))
        if derivatives[0] is not None:
            both = zip(patterns, derivatives, strict=True)
            rows = [counted(p[None], d[None]) for pair in both for p, d in zip(*pair, strict=True)]
            whole = whole + torch.block_diag(*rows) @ whole
    of, names = Differentiable(asked_of(model, x)), [name for name, *_ in by_piece(model, x)]
    need_one_pass(of)
    start = torch.rand(3, places, dtype=torch.float64)[: len(of.asked.target.parts)]
    found = Relevance(tower=True)._handed_on(of, names, start, None)[0]
    expected = (start[0] @ whole).detach()
    assert (found - expected).abs().max() < 1e-8 and (found - start[0]).abs().max() > 1e-4
    assert max(counts) == most


def test_towers_that_relevance_does_not_go_through(monkeypatch):
    none = li.wrap(tiny_model("llava"))
    x = tiny_example(none, "llava")
    with monkeypatch.context() as patch:
        patch.setattr("lvlm_interp.heatmaps.tower.Places.entered", lambda places, flows: flows[:, :3])
        with pytest.raises(ImageError, match="attends to 5 places, and the image's tokens are made of 3; tower=False"):
            li.attribute(none, x, "relevance", tower=True)
    for name in [name for name in none.sites if name.startswith("vision.")]:
        del none.sites[name]
    with pytest.raises(ModelError, match="none is found in it; tower=False"):
        li.attribute(none, x, "relevance", tower=True)


def test_places_that_become_several_tokens(vlm):
    """A projector that mixes its tokens."""
    mixing = li.wrap(tiny_llava())
    projector = mixing.model.model.multi_modal_projector
    plain = type(projector).forward
    projector.forward = lambda features: plain(projector, features + features.flip(1))
    with pytest.raises(ImageError, match=r"4 of the 5 places.*become several of the image's tokens"):
        li.attribute(mixing, tiny_inputs(mixing), "relevance", tower=True)
