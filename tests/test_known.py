"""What was read of a model is read again where it may be another: what torch counts, and what was written behind it."""

import gc
import weakref

import pytest
import torch
from torch import nn

from lvlm_interp.model.identity import fingerprint
from lvlm_interp.model.known import PAGE, TURNS, Known
from tests.tiny import tiny_llava


@pytest.fixture
def model():
    return tiny_llava()


def test_what_was_read_keeps_no_weights(model):
    """Where they were is looked at only while a tensor says that it is there."""
    model.big = nn.Linear(256, 256)
    known, gone = Known(), weakref.ref(model.big.weight)
    known.fingerprint(model)
    known.changes(model)
    model.big = nn.Linear(8, 8)
    gc.collect()
    assert gone() is None
    assert known.fingerprint(model) == fingerprint(model)


def test_a_number_written_behind_torch_s_back_is_seen_in_turn(model):
    model.big = nn.Linear(256, 256)
    known = Known()
    for at in (3, 1 << 15):
        before = known.fingerprint(model)
        model.big.weight.data.view(-1)[at] += 1
        seen = [known.fingerprint(model) for _ in range(TURNS)]
        assert seen[-1] == fingerprint(model) != before


def test_a_change_that_torch_counts_is_seen_at_once(model):
    """Though it is of a single number, in no place that is looked at each time."""
    model.big = nn.Linear(256, 256)
    known = Known()
    for _ in range(TURNS):
        before = known.fingerprint(model)
        with torch.no_grad():
            model.big.weight[3, 5] += 1
        assert known.fingerprint(model) == fingerprint(model) != before


def test_a_change_that_fills_a_page_is_seen_at_once(model):
    """Though torch did not count it."""
    model.big = nn.Linear(256, 256)  # sixteen rows fill a page
    known = Known()
    for _ in range(TURNS):
        before = known.fingerprint(model)
        model.big.weight.data[16:32] += 1
        assert known.fingerprint(model) == fingerprint(model) != before


@pytest.mark.parametrize("width", [256, 512, 576, 1024])
def test_columns_of_a_head_are_seen_at_once(model, width):
    """Pages of one size meet the same columns in every row, where a row is a part of a page."""
    model.big, seen = nn.Linear(width, width), Known()
    for first in range(0, width, 64):
        before = seen.fingerprint(model)
        model.big.weight.data[:, first : first + 64] = 0
        assert seen.fingerprint(model) == fingerprint(model) != before


def test_steps_of_a_page_would_miss_columns(model, monkeypatch):
    """The control."""
    monkeypatch.setattr("lvlm_interp.model.known.STEP", PAGE)
    model.big, seen = nn.Linear(512, 512), Known()
    found = []
    for _ in range(2):
        before = seen.fingerprint(model)
        model.big.weight.data[:, 64:128] += 1
        found.append(seen.fingerprint(model) == before)
    assert any(found)  # in one of them it may be its turn to be read


def test_a_module_at_two_places_is_told_by_both(model):
    """A walk meets it once: which of two stands at a third place is not in what it meets."""
    layers, found = model.model.language_model.layers, []
    for stands in (layers[0].mlp, layers[1].mlp):
        layers[2].mlp = stands
        found.append(fingerprint(model))
        assert Known().fingerprint(model) == found[-1]
    assert found[0] != found[1]


def test_a_weight_that_stands_elsewhere_is_read_anew(model):
    """Of the same shape and type, as often counted, and alike in each page: only its place tells."""
    model.big = nn.Linear(256, 256)
    weight, known, kept = model.big.weight, Known(), []
    for _ in range(2):  # in one of them it may be its turn to be read
        before, counted = known.fingerprint(model), weight._version
        kept.append(weight.data)
        weight.data = weight.data + torch.zeros(256, 256).index_fill(1, torch.tensor(7), 1)
        assert weight._version == counted and weight.data_ptr() != kept[-1].data_ptr()
        assert known.fingerprint(model) == fingerprint(model) != before
