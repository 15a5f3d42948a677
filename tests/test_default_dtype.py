"""The type that torch makes numbers of by default, which scripts change to open models, decides no result."""

import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.probes.statistics import exchanges
from lvlm_interp.reference import assemble
from lvlm_interp.reference.assemble import _made_in as default
from tests.families import tiny_model
from tests.saved import processor

TYPES = (torch.float64, torch.bfloat16, torch.float16)
HOW = li.Fitting(steps=4, positions=8, from_each=4)


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_model("llava"), processor("llava"))


@pytest.fixture(scope="module")
def examples(vlm):
    """Made beforehand, with everything that belongs to them."""
    pictures = [Image.effect_noise((48 + n, 40), 60).convert("RGB") for n in range(4)]
    return [vlm.prepare("What is it?", picture, answer="A cat.") for picture in pictures]


def exchanged():
    """Of groups with several labels, whose members change places too."""
    groups, labels = torch.arange(12) // 3, torch.arange(12) % 2
    return exchanges(torch.zeros(12, dtype=torch.long), groups, 20, torch.Generator().manual_seed(0), labels)


RESULTS = {
    "noise": lambda vlm, some: li.contrast(vlm, some[0], "noise", seed=3).delta,
    "crop": lambda vlm, some: li.contrast(vlm, some[0], "crop", seed=3).delta,
    "tuned lens": lambda vlm, some: li.fit_tuned_lens(vlm, some, HOW).weight,
    "permutations": lambda vlm, some: exchanged(),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", RESULTS)
def test_results_are_the_same(vlm, examples, name, dtype):
    expected = RESULTS[name](vlm, examples)
    with default(dtype):
        found = RESULTS[name](vlm, examples)
        assert torch.get_default_dtype() == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_reference_is_built_in_single_precision(monkeypatch, dtype):
    """It is kept: built in half precision once, it would give other numbers from then on."""

    def stopped(adapter):
        raise InterruptedError(torch.nn.Linear(2, 2).weight.dtype)

    monkeypatch.setattr(assemble, "_assembled", stopped)
    with default(dtype):
        with pytest.raises(InterruptedError, match="float32"):
            assemble.assemble({})
        assert torch.get_default_dtype() == dtype
