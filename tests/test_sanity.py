"""Whether maps depend on weights and answers, what is imputed, and faithfulness over examples."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.heatmaps import filling, sanity
from lvlm_interp.heatmaps.faithfulness import SHARES
from lvlm_interp.heatmaps.method import Method
from tests import saved
from tests.tiny import tiny_inputs, tiny_llava

SIDE = 4
ASKED = {"unit": "answer", "value": "logprob"}


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava(side=SIDE))


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm, side=SIDE)


# --- weights and answers ----------------------------------------------------------------------------------------------


def test_it_compares_with_the_map_of_shuffled_weights(vlm, x):
    before, state = vlm.fingerprint, {name: value.clone() for name, value in vlm.model.state_dict().items()}
    own = li.attribute(vlm, x, **ASKED).values.flatten()
    with sanity.shuffled(vlm, 2, 5):
        moved = [name for name, value in vlm.model.state_dict().items() if not torch.equal(value, state[name])]
        other = li.attribute(vlm, x, **ASKED).values.flatten()
        for name in moved:
            assert torch.equal(
                vlm.model.state_dict()[name].flatten().sort().values, state[name].flatten().sort().values
            )
    assert moved and all(".layers.0." not in name and "vision" not in name for name in moved)
    assert vlm.fingerprint == before and all(torch.equal(v, state[k]) for k, v in vlm.model.state_dict().items())
    found = li.sanity(vlm, x, blocks=[2, 1], seed=5, **ASKED)
    assert found.blocks == (2, 1) and vlm.fingerprint == before
    assert float(found.weights[0, 0]) == pytest.approx(spearmanr(own, other).statistic, abs=1e-6)
    assert found.provenance.weights == before and found.foil.isnan().all()


def test_a_map_that_knows_no_model_fails(vlm, x):
    """The control: a prior is the same for all weights and answers."""

    @dataclasses.dataclass(frozen=True)
    class Prior(Method):
        def map(self, asked):
            values = torch.arange(float(asked.cells.numel())).expand(len(asked.target.parts), -1)
            return asked.mapped("prior", values, values.sum(1), {}, value="prior", says="of a place", unit="1")

    assert li.sanity(vlm, x, Prior(), blocks=[1]).weights.unique().tolist() == pytest.approx([1.0])


def test_the_weights_come_back_whatever_happens(vlm, x, monkeypatch):
    before = vlm.fingerprint
    with pytest.raises(InterruptedError), sanity.shuffled(vlm, 3, 0):
        raise InterruptedError
    assert vlm.fingerprint == before


def test_another_answer_has_another_map(tmp_path):
    vlm = li.wrap(tiny_llava(), saved.processor("llava"))
    x = vlm.prepare("what?", Image.new("RGB", (28, 28), "red"), answer="red")
    found = li.sanity(vlm, x, foil="blue", unit="answer", blocks=[1])
    mine, other = (li.attribute(vlm, vlm.answered(x, text), unit="answer").values.flatten() for text in ("red", "blue"))
    assert float(found.foil[0]) == pytest.approx(spearmanr(mine, other).statistic, abs=1e-6)
    assert found.to_frame()["rather blue"].tolist() == pytest.approx(found.foil.tolist())
    assert li.load_result(found.save(tmp_path / "sanity.safetensors")) == found and "blue" in repr(found)
    with pytest.raises(InputError, match="the answer itself"):
        li.sanity(vlm, x, foil="red")


@pytest.mark.parametrize("blocks", [[], [0], [4], [1, 1]])
def test_blocks_that_are_not_there(vlm, x, blocks):
    with pytest.raises(InputError, match="counts from 1 to 3"):
        li.sanity(vlm, x, blocks=blocks)


def test_quantised_weights_are_refused(vlm, x, monkeypatch):
    monkeypatch.setattr(sanity, "stored_otherwise", lambda model: iter([("layer", None)]))
    with pytest.raises(ModelError, match="layer are quantised"):
        li.sanity(vlm, x)


# --- what stands in the place of pixels -------------------------------------------------------------------------------


def test_what_is_gone_is_the_mean_of_what_is_around_it():
    """Rong et al. 2022: within, each pixel is the weighted mean of its eight; so a slope goes on as it is."""
    slope = np.broadcast_to(np.arange(9.0)[None, :, None], (7, 9, 3)).copy()
    gone = np.zeros((7, 9), bool)
    gone[2:5, 3:6] = True
    spoilt = np.where(gone[..., None], 99.0, slope)
    assert filling.solved(spoilt, gone) == pytest.approx(slope)
    noisy = np.random.default_rng(0).random((7, 9, 3))
    found = filling.solved(noisy, gone)
    one = found[3, 4]
    beside = found[[2, 4, 3, 3], [4, 4, 3, 5]].sum(0) / 6 + found[[2, 2, 4, 4], [3, 5, 3, 5]].sum(0) / 12
    assert one == pytest.approx(beside) and found[~gone] == pytest.approx(noisy[~gone])
    gone[:] = True
    assert filling.solved(noisy, gone) == pytest.approx(np.broadcast_to(noisy.mean((0, 1)), noisy.shape))
    assert filling.solved(noisy, ~gone) == pytest.approx(noisy)


def test_a_large_picture_is_imputed_small():
    picture = Image.linear_gradient("L").resize((600, 400)).convert("RGB")
    gone = np.zeros((400, 600), bool)
    gone[100:200, 100:300] = True
    found = filling.imputed(picture, gone).astype(float)
    assert np.abs(found - np.asarray(picture, float))[gone].mean() < 6
    black = filling.filling_of(picture, "black")(gone)
    assert black.max() == 0 and np.array_equal(filling.imputed(picture, gone), filling.imputed(picture, gone))


def test_road_is_a_substrate():
    vlm = li.wrap(tiny_llava(), saved.processor("llava"))
    picture = Image.radial_gradient("L").resize((28, 28)).convert("RGB")
    x = vlm.prepare("what?", picture, answer="red")
    found = li.attribute(vlm, x, unit="answer", substrate="road", regions=2)
    assert found.provenance.parameters["substrate"] == "road" and found.values.isfinite().all()


# --- shares of the picture, and examples ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(vlm, x):
    maps = {name: li.attribute(vlm, x, name, unit="answer", value="logprob") for name in ("occlusion", "attention")}
    asked = {**ASKED, "substrates": "tokens", "regions": 4, "orders": 3}
    return [li.faithfulness(vlm, x, maps, seed=seed, **asked) for seed in (0, 1)]


def test_comprehensiveness_and_sufficiency_are_read_off_the_curves(measured):
    found = measured[0]
    whole = float(found.deletion[0, 0, 0])
    for name, curve in (("comprehensiveness", found.deletion), ("sufficiency", found.insertion)):
        at = [float(np.interp(share, found.revealed[0], curve[0, 0])) for share in SHARES]
        assert float(getattr(found, name)[0, 0]) == pytest.approx(whole - sum(at) / len(SHARES), abs=1e-5)
    assert {"comprehensiveness", "sufficiency"} <= {*found.to_frame()}


def test_agreement_is_spearman_s(measured):
    found = measured[0]
    table = found.agreement()
    expected = spearmanr(found.numbers[0], found.numbers[1]).statistic
    assert table.loc["occlusion", "attention"] == pytest.approx(expected) and [*table] == list(found.maps)
    assert np.diag(table) == pytest.approx(1)


def test_over_examples_means_and_paired_differences(measured, tmp_path):
    found = li.faithfulness_over(measured, samples=50)
    areas = [one.insertion_area - one.random_insertion.mean(0) for one in measured]
    assert torch.allclose(found.mean[0], (areas[0] + areas[1]) / 2, atol=1e-6)
    assert torch.allclose(found.less_first[0, 1], found.mean[0, 1] - found.mean[0, 0], atol=1e-6)
    assert (found.less_first[:, 0] == 0).all() and (found.low <= found.high)[0].all()
    assert li.load_result(found.save(tmp_path / "a.safetensors")) == found
    assert found.provenance.example != measured[0].provenance.example
    assert len(found.to_frame()) == 5 * 3
    together = li.faithfulness_over(measured, ["one picture"] * 2, samples=50)
    assert together.groups == 1 and together.low.isnan().all()


def test_examples_that_cannot_be_compared(measured):
    with pytest.raises(InputError, match="no examples"):
        li.faithfulness_over([])
    with pytest.raises(InputError, match="same unit"):
        li.faithfulness_over([measured[0], dataclasses.replace(measured[1], unit="logits")])
    with pytest.raises(InputError, match="a group for each"):
        li.faithfulness_over(measured, ["a"])
    other = dataclasses.replace(measured[1].provenance, weights="other")
    with pytest.raises(InputError, match="of one model"):
        li.faithfulness_over([measured[0], dataclasses.replace(measured[1], provenance=other)])
