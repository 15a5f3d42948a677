"""What hiding a token would take, to first order: equal to slow versions, and where it is not told, all are hidden."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.errors import InputError, LvlmInterpWarning
from lvlm_interp.heatmaps import first_order
from lvlm_interp.heatmaps.first_order import lost_to_first_order
from lvlm_interp.heatmaps.game import Game
from lvlm_interp.heatmaps.methods.occlusion import strongest
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

PATTERN = "blocks.*.attn.hook_pattern"
SIDE = 5


@pytest.fixture(scope="module")
def exact():
    return li.wrap(tiny_llava(dtype=torch.float64, side=SIDE))


@pytest.fixture(scope="module")
def x(exact):
    return tiny_inputs(exact, side=SIDE)


def rows_of(x, hide_from):
    return torch.arange(x.length)[~x.where("image")] if hide_from == "text" else torch.arange(x.length)


def without(found, layer, j, rows, alone):
    """z of the rows that lose sight of position j in one layer, less z as it is; `alone`: the others' shares stay."""
    pattern, v = found[f"blocks.{layer}.attn.hook_pattern"][0], found[f"blocks.{layer}.attn.hook_v"][0]
    v = v.repeat_interleave(pattern.shape[0] // v.shape[1], 1)
    changed = torch.zeros(len(v), *v.shape[1:], dtype=v.dtype)
    for row in [int(row) for row in rows if int(row) != j]:
        for head, shares in enumerate(pattern[:, row]):
            left = shares.clone()
            left[j] = 0
            left = left if alone else left / left.sum()
            changed[row, head] = (left - shares) @ v[:, head]
    return changed


def by_differences(vlm, x, j, rows, part, alone=False, step=1e-2):
    """What the log-odds lose when z goes a little of the way, in all layers at once: the slope, by two passes.

    Norms round to single precision, whatever the model is in: a smaller step would show it.
    """
    found = vlm.capture(x, [PATTERN, "blocks.*.attn.hook_v"])
    ways = {f"blocks.{n}.attn.hook_z": without(found, n, j, rows, alone) for n in range(len(vlm.blocks))}
    values = []
    for sign in (1, -1):
        edits = {site: lambda z, way=way, sign=sign: z + sign * step * way for site, way in ways.items()}
        logits = vlm.capture(x, "hook_embed", edits=edits)["logits"][0, x.answer_start - 1 + part].double()
        chance = logits.log_softmax(-1)[x.answer_ids[part]]
        values.append(float(chance - torch.log1p(-chance.exp())))
    return -(values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("hide_from", ["text", "all"])
def test_it_is_the_slope_towards_a_row_without_the_key(exact, x, hide_from):
    near = lost_to_first_order(Game(asked_of(exact, x), None, hide_from=hide_from))
    rows = rows_of(x, hide_from)
    positions = x.images[0].positions.tolist()
    slopes, others, found = [], [], []
    for patch, part in ((0, 0), (3, 0), (7, 1), (24, 2)):
        slopes.append(by_differences(exact, x, positions[patch], rows, part))
        others.append(by_differences(exact, x, positions[patch], rows, part, alone=True))
        found.append(float(near[part, patch]))
    assert found == pytest.approx(slopes, rel=1e-2, abs=2e-3)
    assert found != pytest.approx(others, rel=1e-2, abs=2e-3)  # a softmax that is not done again


def by_squares(vlm, x, part, rows):
    """The same from whole patterns and the derivatives by them."""
    with torch.inference_mode(False), torch.enable_grad():
        found = vlm.capture(x, PATTERN, grad=True)
        patterns = [one for name, one in found.items() if name != "logits"]
        chance = found["logits"][0, x.answer_start - 1 + part].double().log_softmax(-1)[x.answer_ids[part]]
        derivatives = torch.autograd.grad(chance - torch.log1p(-chance.exp()), patterns)
    total = torch.zeros(x.length, dtype=torch.float64)
    for pattern, derivative in zip(patterns, derivatives, strict=True):
        seen, slope = pattern[0].detach().double(), derivative[0].double()
        lost = seen / (1 - seen).clamp(min=1e-6) * (slope - (seen * slope).sum(-1, keepdim=True))
        lost = lost.masked_fill(torch.eye(x.length, dtype=torch.bool), 0)
        total += lost[:, rows].sum((0, 1))
    return total


FAMILIES = [
    "gemma3",
    "gemma4",
    "qwen2_5_vl",
    "idefics3",
    "internvl",
    "llama4",
    "muse_spark",
    "mistral_large4",
    "dots3_note",
]


@pytest.mark.parametrize("hide_from", ["text", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_attention(name, hide_from):
    """Gated, capped, with sinks, windows, shared or latent keys; values that several heads share."""
    vlm = li.wrap(tiny_model(name))
    x = tiny_example(vlm, name)
    game = Game(asked_of(vlm, x), None, hide_from=hide_from)
    near, rows = lost_to_first_order(game), rows_of(x, hide_from)
    slow = torch.stack([by_squares(vlm, x, part, rows) for part in range(len(x.answer_ids))])
    shown = game.asked.patches.double()
    torch.testing.assert_close(near, slow @ shown.T, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(near, by_squares(vlm, x, 0, rows[:1]) @ shown.T, atol=1e-4)


# --- the strongest hidden, the others told so -------------------------------------------------------------------------


def test_the_strongest_are_hidden_and_the_map_says_which(exact, x):
    every = li.attribute(exact, x, unit="answer", exact=None)
    near = lost_to_first_order(Game(asked_of(exact, x, unit="answer"), None))[0]
    found = li.attribute(exact, x, unit="answer", exact=4)
    hidden = found.exact.flatten()
    assert hidden.sum() == 4 and {*hidden.nonzero().flatten().tolist()} == {*near.abs().topk(4).indices.tolist()}
    values, whole = found.values.flatten(), every.values.flatten()
    torch.testing.assert_close(values[hidden], whole[hidden])
    torch.testing.assert_close(values[~hidden].double(), near[~hidden], atol=1e-6, rtol=1e-5)
    assert (values - whole)[~hidden].abs().max() > 1e-3  # first order is not all there is
    torch.testing.assert_close(found.image_total, every.image_total)
    assert "4 hidden and the others to first order" in found.note and every.exact is None
    assert found.provenance.parameters["exact"] == 4
    assert found.to_frame()["exact"].sum() == 4 and "exact" not in every.to_frame()


def test_it_is_saved_and_read_again(exact, x, tmp_path):
    found = li.attribute(exact, x, unit="answer", exact=4)
    assert li.load_result(found.save(tmp_path / "map.safetensors")) == found
    other = li.attribute(exact, x, unit="answer", exact=5)
    assert (found - other).to_frame()["value difference"].abs().max() > 0


def test_each_part_has_its_turn():
    near = torch.tensor([[9.0, -8.0, 1.0, 0.0, 2.0], [0.1, 0.2, 0.0, 0.5, -0.4]])
    assert strongest(near, 2).tolist() == [0, 3]
    assert strongest(near, 4).tolist() == [0, 1, 3, 4]


def test_regions_too(exact, x):
    found = li.attribute(exact, x, unit="answer", regions=5, exact=3)
    assert found.exact.sum() == 3
    every = li.attribute(exact, x, unit="answer", regions=5, exact=None)
    torch.testing.assert_close(found.values[0][found.exact], every.values[0][found.exact])


def test_what_it_is_compared_with_stays_the_same(exact, x):
    found = li.attribute(exact, x, exact=2, value="odds")
    every = li.attribute(exact, x, exact=None, value="odds", against=found)
    assert found.exact.sum() == 2 and found.alternative_ids == every.alternative_ids
    torch.testing.assert_close(found.values[0][found.exact], every.values[0][found.exact], atol=1e-5, rtol=1e-5)


# --- where derivatives do not pay, or are none ------------------------------------------------------------------------


def test_few_patches_are_all_hidden(exact, x):
    assert li.attribute(exact, x).exact is None
    assert li.attribute(exact, x, exact=22, unit="answer").exact is None  # three spare nothing


def test_a_state_beside_attention():
    vlm = li.wrap(tiny_model("qwen3_5"))
    x = tiny_example(vlm, "qwen3_5")
    assert lost_to_first_order(Game(asked_of(vlm, x, unit="answer"), None)) is None
    assert li.attribute(vlm, x, unit="answer", exact=1).exact is None


def test_pixels_are_all_changed(exact, x, monkeypatch):
    monkeypatch.setattr(first_order, "_of_positions", None)
    game = Game(asked_of(exact, x, unit="answer"), None)
    game.hiding.substrate = "mean"
    assert lost_to_first_order(game) is None


def test_under_an_edit_of_attention_all_are_hidden(exact, x):
    with exact.visiting({"blocks.1.attn.hook_pattern": lambda pattern: pattern * 0.9}):
        found = li.attribute(exact, x, unit="answer", exact=2)
        every = li.attribute(exact, x, unit="answer", exact=None)
    assert found.exact is None and torch.equal(found.values, every.values)


def test_for_want_of_memory_all_are_hidden(exact, x, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    every = li.attribute(exact, x, unit="answer", exact=None)
    monkeypatch.setattr(first_order, "_of_positions", full)
    with pytest.warns(LvlmInterpWarning, match="memory.*every patch is hidden"):
        found = li.attribute(exact, x, unit="answer", exact=2)
    assert found.exact is None and torch.equal(found.values, every.values)


@pytest.mark.parametrize("wrong", [0, -3])
def test_none_hidden_is_refused(exact, x, wrong):
    with pytest.raises(InputError, match=r"exact= .* 1 or more"):
        li.attribute(exact, x, exact=wrong)
