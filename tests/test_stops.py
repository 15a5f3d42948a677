"""The tokens that end a turn, in whatever settings of generation hold them."""

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ModelError
from tests.tiny import tiny_inputs, tiny_llava


@pytest.mark.parametrize(
    ("told", "stops"),
    [
        (2, [2]),
        ([2, 5], [2, 5]),
        ((5,), [5]),
        (np.int64(2), [2]),
        (torch.tensor([2, 7]), [2, 7]),
        (torch.tensor(3), [3]),
        (-1, [1]),
        ([9999, 4], [4]),
        (None, [1]),
        ([], [1]),
    ],
)
def test_ids_are_read(told, stops):
    vlm = li.wrap(tiny_llava())
    vlm.model.config.get_text_config().eos_token_id = 1
    vlm.model.generation_config.eos_token_id = told
    assert vlm.stops() == stops
    both = vlm.batch([tiny_inputs(vlm), tiny_inputs(vlm, (7, 8))])
    assert vlm.run(both).isfinite().all()


@pytest.mark.parametrize("told", ["2", {2}, {"id": 2}, 2.5, True])
def test_what_is_no_id_is_told(told):
    vlm = li.wrap(tiny_llava())
    vlm.model.generation_config.eos_token_id = told
    with pytest.raises(ModelError, match="eos_token_id is the number of a token"):
        vlm.stops()
    with pytest.raises(ModelError, match="eos_token_id is the number of a token"):
        tiny_inputs(vlm)


def test_a_model_that_ends_no_turn_has_the_first_token():
    vlm = li.wrap(tiny_llava())
    vlm.model.config.get_text_config().eos_token_id = None
    vlm.model.generation_config = None
    assert vlm.stops() == [0] and tiny_inputs(vlm).length
