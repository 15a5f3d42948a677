"""Causal tracing: shares of the difference between two runs, each that of an exchange alone."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.interventions import Patch, causal_trace
from lvlm_interp.report import figures
from tests.tiny import tiny_inputs, tiny_llava

STREAM = "blocks.*.hook_resid_post"
PLACES = {"layers": "each", "positions": {"image": "image", "text": ["context", "question", "template"], "all": None}}


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def pairs(vlm):
    return [(tiny_inputs(vlm, (7, 8), seed=seed), tiny_inputs(vlm, (9, 8), seed=seed + 10)) for seed in range(3)]


@pytest.fixture(scope="module")
def found(vlm, pairs):
    return causal_trace(vlm, pairs, Patch(STREAM), PLACES, unit="token", values=("difference", "logprob"))


def read(vlm, pair):
    """By hand: the first token of the clean answer, alone and against the corrupt one's, in both runs."""
    logprobs = [vlm.run(x)[0, x.answer_start - 1].log_softmax(-1) for x in pair]
    return torch.stack([torch.stack([p[7] - p[9], p[7]]) for p in logprobs])


def test_shares_are_means_divided_by_means_of_exchanges_alone(vlm, pairs, found):
    layer, where = 1, "image"
    brought, taken, whole = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for clean, corrupt in pairs:
        before = read(vlm, (clean, corrupt))
        both = []
        for into, source in ((corrupt, clean), (clean, corrupt)):
            with li.intervening(vlm, into, Patch(STREAM, where, layers=layer, source=source)):
                p = vlm.run(into)[0, into.answer_start - 1].log_softmax(-1)
            both.append(torch.stack([p[7] - p[9], p[7]]))
        brought += both[0] - before[1]
        taken += before[0] - both[1]
        whole += before[0] - before[1]
    cell = found.labels.index((layer, where))
    assert torch.allclose(found.share[:, 0, cell], brought / whole, atol=1e-4)
    assert torch.allclose(found.share[:, 1, cell], taken / whole, atol=1e-4)
    wholes = torch.stack([read(vlm, pair) for pair in pairs]).mean(0)
    assert torch.allclose(found.clean, wholes[0], atol=1e-4) and torch.allclose(found.corrupt, wholes[1], atol=1e-4)


def test_all_positions_carry_all_of_it(found):
    """Exchanging every position makes the other run of it; the image's, behind the last reader of it, nothing."""
    everything = [n for n, label in enumerate(found.labels) if label[1] == "all"]
    assert torch.allclose(found.share[:, :, everything], torch.ones(()), atol=1e-4)
    last = found.labels.index((2, "image"))
    assert float(found.share[:, :, last].abs().max()) < 1e-4  # behind the last block nobody reads it any more


def test_columns_and_intervals(found):
    frame = found.to_frame()
    assert list(frame.columns[:6]) == ["value", "direction", "layer", "positions", "share", "low"]
    assert len(frame) == 2 * 2 * 9 and found.pairs == 3
    assert bool((frame["low"] <= frame["share"] + 1e-6).all())


def test_a_pair_alone_has_no_interval(vlm, pairs):
    assert causal_trace(vlm, pairs[:1], values=["difference"], unit="token").low.isnan().all()


def test_places_made_of_each_example(vlm, pairs):
    made = causal_trace(vlm, pairs, None, lambda x: {"positions": {"shown": x.where("image")}}, unit="token")
    assert made.labels == (("shown",),)
    names = iter("abcdef")
    with pytest.raises(InputError, match="the same names"):
        causal_trace(vlm, pairs, None, lambda x: {"positions": {next(names): "image"}}, unit="token")


def longer(vlm, pair):
    clean, corrupt = pair
    ids = torch.cat([corrupt.input_ids[:, :8], corrupt.input_ids[:, 7:]], 1)
    roles = [*corrupt.roles[:8], *corrupt.roles[7:]]
    pixels = corrupt.model_inputs["pixel_values"]
    return clean, vlm.inputs(ids, answer_start=corrupt.answer_start + 1, roles=roles, pixel_values=pixels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs": lambda vlm, pairs: []}, "0 pairs"),
        ({"pairs": lambda vlm, pairs: [longer(vlm, pairs[0])]}, "position 10 is the first that differs"),
        ({"pairs": lambda vlm, pairs: [(pairs[0][0], pairs[0][0])]}, "no difference to trace"),
        ({"pairs": lambda vlm, pairs: [(pairs[0][0], pairs[0][1].prompt)]}, "no answer to compare with"),
        ({"groups": lambda vlm, pairs: [1]}, "a group for each or none"),
        ({"over": lambda vlm, pairs: "keys"}, "has no 'keys'"),
    ],
)
def test_what_cannot_be_traced_is_told(vlm, pairs, change, said):
    asked = {"pairs": pairs, **{name: made(vlm, pairs) for name, made in change.items()}}
    with pytest.raises(InputError, match=said):
        causal_trace(vlm, unit="token", **asked)


def test_runs_that_do_not_differ_have_no_shares(vlm, pairs):
    clean = pairs[0][0]
    same = clean.prompt.with_answer([9, 8], vlm.token_strings([9, 8]), "")
    with pytest.raises(InputError, match="of which no share can be told"):
        causal_trace(vlm, [(clean, same)], unit="token")


def test_a_map_of_places(found):
    drawn = figures.trace_map(found, "logprob", "noising").images[0].get_array()
    assert torch.allclose(torch.as_tensor(drawn.data).float(), found.share[1, 1].view(3, 3))
    with pytest.raises(InputError, match="'odds'"):
        figures.trace_map(found, "odds")
