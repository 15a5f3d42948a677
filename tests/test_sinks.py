"""What sinks get is given to the rest of the image: beside a loop over rows and heads, written from nothing."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.interventions import Redistribute, intervene
from lvlm_interp.interventions.sinks import ON_REST, ON_SINKS
from tests.tiny import tiny_inputs, tiny_llava

LARGE = 12  # the dimension that is made large


@pytest.fixture(scope="module")
def vlm():
    """The first position and one patch stand out in one dimension, as in models that are trained."""
    model = tiny_llava()
    embed = model.model.language_model.get_input_embeddings()
    with torch.no_grad():
        embed.weight[1, LARGE] = 60.0
    found = li.wrap(model)
    x = tiny_inputs(found)
    image = x.where("image").nonzero()[:, 0]
    projected = model.model.multi_modal_projector
    first = projected.linear_2.register_forward_hook(lambda *given: _large(given[2]))
    assert len(image) == 4
    yield found
    first.remove()


def _large(output):
    changed = output.clone()
    changed[:, 1, LARGE] = 60.0
    return changed


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


def by_loops(x, pattern, sinks, share, least, sunk):
    """Row by row and head by head, with plain numbers."""
    image = x.where("image").nonzero()[:, 0].tolist()
    found = pattern.clone()
    for head in range(pattern.shape[1]):
        for row in range(x.answer_start - 1, x.length):
            own = pattern[0, head, row].tolist()
            on_image, on_sinks = sum(own[k] for k in image), sum(own[k] for k in image if k in sinks)
            if on_image < least or on_sinks > sunk * on_image:
                continue
            budget = share * sum(own[k] for k in sinks)
            rest = sum(own[k] for k in image if k not in sinks)
            for k in range(len(own)):
                gained = budget * own[k] / rest if k in image and k not in sinks else 0.0
                found[0, head, row, k] = (own[k] * (1 - share) if k in sinks else own[k]) + gained
    return found


CASES = [(0.6, 0.0, 1.0), (0.4, 0.05, 0.9), (1.0, 0.1, 0.4)]


@pytest.mark.parametrize(("share", "least", "sunk"), CASES)
def test_it_is_what_a_loop_makes(vlm, x, share, least, sunk):
    pattern = vlm.capture(x, "blocks.0.attn.hook_pattern")["blocks.0.attn.hook_pattern"]
    moving = Redistribute(layers=0, share=share, least=least, sunk=sunk, threshold=3.0)
    image = x.where("image").nonzero()[:, 0].tolist()
    assert moving.sinks(vlm, x, [0])[0].nonzero()[:, 0].tolist() == [0, image[1]]
    expected = by_loops(x, pattern, [0, image[1]], share, least, sunk)
    assert not torch.allclose(expected, pattern, atol=1e-3)
    with li.intervening(vlm, x, moving):
        found = vlm.capture(x, "blocks.0.attn.hook_pattern")["blocks.0.attn.hook_pattern"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)
    edited = li.score(vlm, x, x.everything[None], edits={"blocks.0.attn.hook_pattern": lambda _: expected})
    effects = intervene(vlm, x, moving)
    assert torch.allclose(effects.logprob[1], edited.logprob[0], atol=1e-4)


def test_the_check_fails_where_heads_are_not_chosen(vlm, x):
    """Moving in all heads alike is another pattern."""
    pattern = vlm.capture(x, "blocks.0.attn.hook_pattern")["blocks.0.attn.hook_pattern"]
    image = x.where("image").nonzero()[:, 0].tolist()
    chosen, all_alike = (by_loops(x, pattern, [0, image[1]], 0.6, least, sunk) for least, sunk in ((0.1, 0.4), (0, 1)))
    assert not torch.allclose(chosen, all_alike, atol=1e-3)


def test_certificates_tell_what_moved(vlm, x):
    (one,) = intervene(vlm, x, Redistribute(layers=0, least=0.0, sunk=1.0, threshold=3.0)).certificates
    assert one.holds and one.achieved[ON_SINKS] == pytest.approx(0.4 * one.untouched[ON_SINKS], rel=1e-4)
    gained = one.achieved[ON_REST] - one.untouched[ON_REST]
    assert gained == pytest.approx(0.6 * one.untouched[ON_SINKS], rel=1e-3)


def test_dimensions_are_found_or_told(vlm, x):
    found = Redistribute(threshold=3.0).sinks(vlm, x, [0, 1])
    told = Redistribute(dimensions=(LARGE,), threshold=3.0).sinks(vlm, x, [0, 1])
    assert all(torch.equal(found[n] & told[n], told[n]) for n in (0, 1)) and told[0].any()


def test_what_cannot_be_moved(vlm, x):
    with pytest.raises(InputError, match=r"no position is a sink.*threshold= is 500"):
        intervene(vlm, x, Redistribute(threshold=500.0))
    with pytest.raises(InputError, match="no dimension 99"):
        intervene(vlm, x, Redistribute(dimensions=(99,)))
    with pytest.raises(InputError, match="shares"):
        Redistribute(share=1.5)
    with pytest.raises(InputError, match="chang"):
        intervene(vlm, x, Redistribute(layers=0, least=1.0, threshold=3.0))
