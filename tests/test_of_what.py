"""A capture's provenance is of the model and the example that it was made of, or it is refused."""

import argparse
import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import InputError, ModelError, SiteError
from lvlm_interp.inputs.touched import PLACES, state_of
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.0.hook_resid_post"


@pytest.fixture
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture
def x(vlm):
    return tiny_inputs(vlm)


def test_an_example_that_was_written_to(vlm, x):
    found = vlm.capture(x, SITE)
    x.model_inputs["pixel_values"].mul_(3)
    with pytest.raises(InputError, match="written to since this capture began"):
        _ = found.provenance


def doubled(vlm):
    for weight in vlm.model.parameters():
        weight.data.mul_(2)


def one_large_weight(vlm):
    vlm.decoder.layers[1].mlp.gate_proj.weight.data.mul_(1.01)


def by_numpy(vlm):
    vlm.decoder.embed_tokens.weight.detach().numpy()[:] += 1


def one_number_of_a_norm(vlm):
    vlm.decoder.norm.weight.data[17] = 3


PAST_THE_COUNT = (doubled, one_large_weight, by_numpy, one_number_of_a_norm)


@pytest.mark.parametrize("write", PAST_THE_COUNT, ids=lambda write: write.__name__)
@pytest.mark.parametrize("when", ["later", "within the pass", "of inference mode"])
def test_weights_that_are_written_past_torchs_count(write, when):
    with torch.inference_mode(when == "of inference mode"):
        vlm = li.wrap(tiny_llava())
        x = tiny_inputs(vlm)
        edits = {SITE: lambda value: (write(vlm), value)[1]} if when == "within the pass" else {}
        before = [weight._version for weight in vlm.model.parameters() if not weight.is_inference()]
        found = vlm.capture(x, SITE, edits=edits)
        if not edits:
            write(vlm)
    assert before == [weight._version for weight in vlm.model.parameters() if not weight.is_inference()]
    with pytest.raises(ModelError, match="changed since this capture began"):
        _ = found.provenance


def test_a_large_tensor_is_looked_at_from_its_first_number_to_its_last():
    large = torch.zeros(1 << 16)
    seen = [state_of(large)]
    for start in range(0, len(large), len(large) // (PLACES - 1)):
        large.data[start : start + len(large) // (PLACES - 1) + 1] += 1  # from one place to the next
        seen.append(state_of(large))
    large.data[-1] = -1
    assert len({*seen, state_of(large)}) == len(seen) + 1 and {count for _, count, _ in seen} == {0}


def test_what_is_not_in_main_memory_is_only_counted():
    assert state_of(torch.zeros(4, device="meta"))[-1] == b"" == state_of(torch.zeros(0))[-1]
    assert state_of(torch.arange(6).view(2, 3).T)[-1] == b""  # not contiguous
    given_back = torch.zeros(1 << 12)
    given_back.untyped_storage().resize_(0)
    assert state_of(given_back)[-1] == b""


@pytest.mark.parametrize("mode", [False, True], ids=["data", "inference mode"])
def test_an_example_that_is_written_to_past_torchs_count(vlm, mode):
    with torch.inference_mode(mode):
        x = tiny_inputs(vlm)
        found, kept = vlm.capture(x, SITE), run_to_decoder(vlm, x)
        x.model_inputs["pixel_values"].data.mul_(3)
    with pytest.raises(InputError, match="written to since this capture began"):
        _ = found.provenance
    with pytest.raises(InputError, match="before its tensors were written to"):
        li.score(vlm, x, x.everything, decoder_inputs=kept)


def test_asked_inside_a_pass_that_changes_the_model(vlm, x):
    """The walk through the modules that this pass began with is not that of now."""
    found, said = vlm.capture(x, SITE), []

    def asked(value):
        vlm.decoder.layers[1].mlp = nn.Identity()
        with pytest.raises(ModelError, match="changed since this capture began"):
            said.append(found.provenance)
        return value

    vlm.capture(x, "blocks.0.hook_resid_pre", edits={SITE: asked})
    assert not said


def test_hooks_that_an_edit_puts_on(vlm, x):
    def hooks(value):
        vlm.decoder.layers[1].register_forward_hook(lambda module, args, output: output * 2)
        return value

    with pytest.raises(SiteError, match="put on hooks"):
        vlm.capture(x, "ln_final.hook_out", edits={SITE: hooks})


def test_a_part_that_is_compiled_later_is_the_same(vlm, x):
    found, before = vlm.capture(x, SITE), vlm.fingerprint
    layers = vlm.decoder.layers
    layers[1] = torch.compile(layers[1])
    assert found.provenance.weights == vlm.fingerprint == before


@pytest.mark.parametrize("value", [np.float32(10.0), torch.tensor(10.0)], ids=["numpy", "tensor"])
def test_settings_that_are_no_plain_numbers(vlm, x, value):
    """They decide what is computed, as a number of Python's would."""
    norm = vlm.decoder.norm
    norm.variance_epsilon = value * 0 + type(value)(1e-6) if isinstance(value, np.generic) else value * 0 + 1e-6
    one, known = vlm.fingerprint, vlm.identity
    found = vlm.capture(x, SITE)
    norm.variance_epsilon = value
    assert vlm.fingerprint != one and vlm.identity != known
    with pytest.raises(ModelError, match="changed since"):
        _ = found.provenance


def another_epsilon(config):
    changed = copy.deepcopy(config)
    changed.rms_norm_eps = 10.0
    return changed


SETTINGS = {
    "a private number": lambda config: {"_scale": 2.0},
    "a private number of numpy": lambda config: {"_scale": np.float32(2.0)},
    "private numbers": lambda config: {"_mean": (0.5, 0.25)},
    "a namespace": lambda config: {"settings": SimpleNamespace(scale=2.0)},
    "a namespace in one": lambda config: {"settings": SimpleNamespace(inner=argparse.Namespace(names=["a"], turns=3))},
    "a configuration of its own": lambda config: {"config": another_epsilon(config)},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=[*SETTINGS])
def test_settings_that_are_private_or_in_objects(vlm, x, setting):
    before, known, found = vlm.fingerprint, vlm.identity, vlm.capture(x, SITE)
    vars(vlm.decoder.layers[1].self_attn).update(setting(vlm.decoder.config))
    assert vlm.fingerprint != before and vlm.identity != known
    with pytest.raises(ModelError, match="changed since"):
        _ = found.provenance
    vlm.run(x)
    assert vlm.capture(x, SITE).provenance.weights == vlm.fingerprint


PASSING = {
    "a counter": lambda module: vars(module).update(_calls=vars(module).get("_calls", 0) + 1),
    "a mark": lambda module: vars(module).update(_was_called=not vars(module).get("_was_called", False)),
    "a cache": lambda module: vars(module).update(_cached=torch.rand(3)),
    "a text": lambda module: vars(module).update(_last=vars(module).get("_last", "") + "x"),
}


@pytest.mark.parametrize("write", PASSING.values(), ids=[*PASSING])
def test_what_passes_write_under_private_names_is_no_setting(vlm, x, write):
    layer = vlm.decoder.layers[1]
    layer.register_forward_hook(lambda module, args, output: write(module))
    before, found, kept = vlm.fingerprint, vlm.capture(x, SITE), run_to_decoder(vlm, x)
    vlm.run(x)
    assert found.provenance.weights == vlm.fingerprint == before
    assert li.score(vlm, x, x.everything, decoder_inputs=kept).provenance.weights == before


def test_configurations_that_modules_share_with_their_model_are_told_once(vlm):
    attention, before = vlm.decoder.layers[1].self_attn, vlm.fingerprint
    assert attention.config is vlm.decoder.config
    del attention.config
    assert vlm.fingerprint == before


def test_a_namespace_that_holds_itself(vlm):
    vlm.decoder.kept = SimpleNamespace(scale=2.0)
    one, vlm.decoder.kept.itself = vlm.fingerprint, vlm.decoder.kept
    assert vlm.fingerprint == vlm.fingerprint != one


def test_a_method_of_the_model_that_was_replaced_is_named(vlm, x):
    own = vlm.model.model.get_image_features

    def doubled(*args, **kwargs):
        found = own(*args, **kwargs)
        found.pooler_output = [one * 2 for one in found.pooler_output]
        return found

    before = li.contrast(vlm, x)
    vlm.model.model.get_image_features = doubled
    after = li.contrast(vlm, x)
    assert not torch.equal(before.delta, after.delta)
    assert before.provenance.edits == () and after.provenance.edits == ("method: model.get_image_features",)


def test_activations_that_a_hook_keeps_on_a_module_are_no_setting(vlm, x):
    """Many do so; the model is the same after each pass."""

    def keep(module, args, output):
        module.kept = output

    handle, before = vlm.decoder.layers[0].register_forward_hook(keep), vlm.fingerprint
    try:
        found = vlm.capture(x, SITE)
        vlm.run(x)
        assert vlm.fingerprint == before == found.provenance.weights
    finally:
        handle.remove()


def test_how_long_passes_have_been_is_no_setting(vlm):
    """Rotary embeddings remember it, some by the kind of layer, some in a tensor."""
    before = vlm.fingerprint
    vlm.decoder.rotary_emb.full_attention_max_seq_len_cached = 99
    vlm.decoder.rotary_emb.None_max_seq_len_cached = torch.tensor(99)
    assert vlm.fingerprint == before


def test_a_number_that_a_hook_keeps_in_a_tensor_is_no_setting(vlm, x):
    """No code of the module's class speaks of it; the control is one that it does speak of."""
    before, found, other = vlm.fingerprint, vlm.capture(x, SITE), vlm.capture(x, SITE)
    mlp = vlm.decoder.layers[0].mlp
    mlp.register_forward_hook(lambda module, args, output: setattr(module, "kept", output.norm()))
    vlm.run(x)
    assert mlp.kept.ndim == 0 and found.provenance.weights == vlm.fingerprint == before
    mlp.hidden_size = torch.tensor(mlp.hidden_size)
    assert vlm.fingerprint != before
    with pytest.raises(ModelError, match="changed since"):
        _ = other.provenance


def test_weights_that_are_moved_to_where_processes_share_them(vlm, x):
    before, found = vlm.fingerprint, vlm.capture(x, SITE)
    place = vlm.decoder.norm.weight.data_ptr()
    vlm.model.share_memory()
    assert vlm.decoder.norm.weight.data_ptr() != place
    assert found.provenance.weights == vlm.fingerprint == before


@pytest.mark.parametrize("copied", [False, True], ids=["of the same storage", "of another storage"])
def test_a_weight_that_is_exchanged_for_one_that_looks_alike(vlm, x, copied):
    weight = vlm.decoder.layers[1].mlp.gate_proj.weight
    pair = weight.data.expand(2, -1, -1).clone()
    pair[1, 1, 1] += 1
    weight.data = pair[0]
    found, looked_at = vlm.capture(x, SITE), state_of(weight)
    weight.data = pair[1].clone() if copied else pair[1]
    assert state_of(weight)[1:] == looked_at[1:]
    with pytest.raises(ModelError, match="changed since"):
        _ = found.provenance


@pytest.mark.parametrize("name", ["kosmos-2", "kosmos-2.5"])
def test_sinusoids_count_but_not_how_many_there_are(name):
    vlm = li.wrap(tiny_model(name))
    x = tiny_example(vlm, name)
    table = next(module for module in vlm.decoder.modules() if hasattr(module, "make_weights"))
    before, found, other, rows = vlm.fingerprint, vlm.capture(x, SITE), vlm.capture(x, SITE), len(table.weights)
    table.make_weights(rows + 7, table.embedding_dim, table.padding_idx)  # as a longer pass does
    assert len(table.weights) > rows and found.provenance.weights == vlm.fingerprint == before
    table.weights[table.num_positions - 1] += 1
    assert vlm.fingerprint != before
    with pytest.raises(ModelError, match="changed since"):
        _ = other.provenance


def test_an_option_of_the_model_is_a_part_of_the_example(vlm, x):
    other = dataclasses.replace(x, model_inputs={**x.model_inputs, "vision_feature_layer": -1})
    found = vlm.capture(other, SITE).provenance.example
    assert found != vlm.capture(x, SITE).provenance.example
    assert found == li.score(vlm, other, other.everything).provenance.example
    assert li.contrast(vlm, other, without="dropped").delta.isfinite().all()
