"""A fingerprint changes with all that decides what a model computes, and with nothing else."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

import lvlm_interp as li
from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.model import settings
from lvlm_interp.model.identity import fingerprint, sums
from lvlm_interp.model.known import Known
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture
def model():
    return tiny_llava()


def first(model, kind):
    return next(module for module in model.modules() if kind in type(module).__name__)


def every_other(model):
    model.get_output_embeddings().weight.data[:, ::2] *= 1.5


def one_element(model):
    with torch.no_grad():
        model.get_input_embeddings().weight[5, 3] += 1e-3


def one_bit(model):
    weight = model.get_input_embeddings().weight.data.view(torch.int32)
    weight[7, 1] ^= 1


def two_heads(model):
    weight = first(model, "Attention").q_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def epsilon(model):
    first(model, "RMSNorm").variance_epsilon = 1e-2


def rotary(model):
    first(model, "RotaryEmbedding").inv_freq *= 2


def configured(model):
    model.config.text_config.rms_norm_eps = 0.5


def dtype(model):
    model.to(torch.bfloat16)


def feature_layer(model):
    model.config.vision_feature_layer = -1


def fewer_layers(model):
    model.config.text_config.num_hidden_layers = 2


def activation(model):
    first(model, "MLP").act_fn = nn.Tanh()


def activation_function(model):
    first(model, "MLP").act_fn = nn.functional.relu


def words(model):
    model.config.vision_feature_select_strategy = "full"


class Centred(nn.Module):
    """A norm of another kind with the weight, and the epsilon, of the one that it replaces."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, eps=self.variance_epsilon)


def another_norm(model):
    block = model.model.language_model.layers[1]
    block.input_layernorm = Centred(block.input_layernorm)


WEIGHTS = (every_other, one_element, one_bit, two_heads, epsilon, rotary, dtype)
SETTINGS = (configured, feature_layer, fewer_layers, words, activation, activation_function, another_norm)
CHANGES = (*WEIGHTS, *SETTINGS)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_fingerprint_notices_what_changes_the_model(model, change):
    before = fingerprint(model)
    change(model)
    assert fingerprint(model) != before


SPARSE = {
    "coo": lambda dense: dense.to_sparse(),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
}


@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_weights_count(model, layout):
    weight = torch.eye(4)
    kept = SPARSE[layout](weight)
    known, norm = Known(), first(model, "RMSNorm")
    norm.register_buffer("kept", kept)
    before = known.fingerprint(model)
    assert before == known.fingerprint(model) == fingerprint(model)
    (kept._values() if layout == "coo" else kept.values()).mul_(2)  # as many numbers, at the same places
    changed = known.fingerprint(model)
    assert changed == fingerprint(model) != before
    norm.kept = SPARSE[layout](2 * weight.flip(0))  # the same numbers at others
    assert known.fingerprint(model) == fingerprint(model) not in (before, changed)


@pytest.mark.parametrize("odd", [lambda: torch.eye(3).to_mkldnn(), lambda: torch.nested.nested_tensor([torch.ones(2)])])
def test_weights_that_nobody_can_look_at_are_refused(model, odd):
    first(model, "RMSNorm").register_buffer("kept", odd())
    with pytest.raises(ModelError, match="tensor of the model cannot be read: lay it out as most are"):
        fingerprint(model)


def test_what_is_read_with_another_sign_is_another_weight(model):
    """Torch keeps the sign of imaginary numbers beside the bytes, which are the same."""
    norm, known = first(model, "RMSNorm"), Known()
    numbers = torch.complex(torch.ones(3), torch.ones(3))
    norm.register_buffer("kept", numbers)
    before = known.fingerprint(model)
    norm.kept = numbers.conj()
    assert known.fingerprint(model) == fingerprint(model) != before


def test_every_byte_of_a_large_tensor_counts(model):
    model.big = nn.Linear(256, 256)
    data = model.big.weight.data.view(-1).view(torch.uint8)
    drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:40].tolist()
    places, seen = {0, len(data) - 1, *drawn}, {fingerprint(model)}
    for place in places:
        data[place] ^= 1
        seen.add(fingerprint(model))
    assert len(seen) == len(places) + 1


def test_adapters_are_part_of_a_model(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, lora_alpha=16))
    seen = [fingerprint(model)]
    for switch in (model.disable_adapters, model.enable_adapters):
        switch()
        seen.append(fingerprint(model))
    first(model, "Attention").q_proj.scaling["default"] *= 2
    assert seen[0] == seen[2] != seen[1] and fingerprint(model) not in seen


def test_nothing_else_is_part_of_it(model, tmp_path):
    """Neither gradients nor training mode, hooks, a kernel, where it is kept, nor that it was saved and opened."""
    before = fingerprint(model)
    model.train()
    first(model, "Decoder").gradient_checkpointing = True
    model.set_attn_implementation("eager")
    model.register_forward_hook(lambda *_: None)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert fingerprint(model) == before == fingerprint(copy.deepcopy(model)) == fingerprint(again)


def sharded(module):
    """As torch's fully_shard does: the module is of a new class."""
    kind = type(module)
    module.__class__ = type(f"FSDP{kind.__name__}", (kind,), {"__module__": "torch.distributed.fsdp._fully_shard"})


def renamed(model):
    for config in (model.config, model.config.text_config):
        config.name_or_path, config.architectures, config._commit_hash = "/elsewhere", ["Mine"], "abc"
        config.id2label, config.pad_token_id, config.use_cache = {0: "cat"}, 3, False
        config.transformers_version, config.dtype = "4.0", torch.float16
    model.name_or_path, model.hf_device_map = "/elsewhere", {"model": 0, "lm_head": "cpu"}


def half_compiled(model):
    layers = model.model.language_model.layers
    layers[1] = torch.compile(layers[1])
    first(model, "CLIPMLP").compile()


ALIKE = {
    "sharded": lambda model: sharded(model.model.language_model.layers[0]),
    "renamed": renamed,
    "compiled": half_compiled,
    "traced": lambda model: li.wrap(model).nnsight,
}


@pytest.mark.parametrize("change", ALIKE)
def test_what_changes_no_number_is_no_part_of_it(model, change):
    before = fingerprint(model)
    ALIKE[change](model)
    assert fingerprint(model) == before


@pytest.mark.parametrize("change", SETTINGS, ids=lambda change: change.__name__)
def test_what_was_read_before_a_setting_changed_is_of_another_model(model, change):
    """Inputs of the decoder, and where a capture comes from."""
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    kept, capture = run_to_decoder(vlm, x), vlm.capture(x, "ln_final.hook_out")
    change(model)
    with pytest.raises(InputError, match="before its weights or settings"):
        li.score(vlm, x, x.everything[None], decoder_inputs=kept)
    with pytest.raises(ModelError, match="changed since this capture began"):
        capture.provenance  # noqa: B018


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_known_of_a_model_is_looked_at_again(model, change):
    """The quick way gives the same; tensors as small as these are read whole."""
    known = Known()
    assert known.fingerprint(model) == known.fingerprint(model) == fingerprint(model)
    change(model)
    assert known.fingerprint(model) == fingerprint(model)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_opened_model_is_looked_at_again_each_time(model, change):
    vlm = li.wrap(model)
    before = vlm.identity
    change(model)
    assert vlm.identity == vlm.fingerprint != before


def of_a_list(module):
    module.scales.append(2.0)


def of_a_list_in_a_tuple(module):
    module.ratios[0].append(2)


def of_a_namespace(module):
    module.space.scale = 3.0


def of_a_partial_function(module):
    module.act.keywords["scale"] = 3.0


def of_a_few_numbers(module):
    module.few[1] = 5.0


def of_another_class(module):
    module.__class__ = type("Other", (Holding,), {})


def of_another_name(module):
    module.second = module.__dict__.pop("first")


def of_nothing_more(module):
    del module.first


def of_a_configuration(module):
    module.config = copy.deepcopy(module.config)
    module.config.factor = 3.0


class Holding(nn.Module):
    """Settings of every sort."""

    def __init__(self):
        super().__init__()
        self.scales, self.ratios, self.first = [1.0], ([1], 2), 1
        self.space, self.config = SimpleNamespace(scale=1.0), PretrainedConfig(factor=1.0)
        self.act, self.few = functools.partial(nn.functional.relu, scale=1.0), torch.zeros(3)

    def forward(self, x):
        return self.act(x) * self.few[0]


HELD = (
    *(of_a_list, of_a_list_in_a_tuple, of_a_namespace, of_a_partial_function, of_a_few_numbers, of_another_class),
    *(of_another_name, of_nothing_more, of_a_configuration),
)


@pytest.mark.parametrize("change", HELD, ids=lambda change: change.__name__)
def test_settings_are_read_again_where_they_may_have_changed(model, change):
    model.extra, known = Holding(), Known()
    before = [known.fingerprint(model), known.fingerprint(model), known.changes(model)]
    assert known.changes(model) == before[-1]
    change(model.extra)
    assert known.changes(model) != before[-1]
    assert before[0] == before[1] != known.fingerprint(model) == fingerprint(model)


def test_a_list_taken_for_what_does_not_change_would_hide_its_change(model, monkeypatch):
    """What the test above checks can fail."""
    monkeypatch.setattr("lvlm_interp.model.known.is_settled", lambda *_: True)
    model.extra, known = Holding(), Known()
    before = known.fingerprint(model)
    of_a_list(model.extra)
    assert known.fingerprint(model) == before


def test_a_configuration_that_is_no_longer_the_model_s_is_told_by_the_module_that_keeps_it(model):
    known, kept = Known(), model.config.text_config
    known.fingerprint(model)
    for part in model.modules():
        if getattr(part, "config", None) is kept and isinstance(part, PreTrainedModel):
            part.config = copy.deepcopy(kept)
    model.config.text_config = copy.deepcopy(kept)
    assert known.fingerprint(model) == fingerprint(model)
    kept.rms_norm_eps = 0.25
    assert known.fingerprint(model) == fingerprint(model)


def test_running_a_model_leaves_its_fingerprint(model):
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    before = vlm.fingerprint
    vlm.run(x)
    li.contrast(vlm, x)
    assert vlm.fingerprint == before


class Packed(nn.Module):
    """Weights as a package for quantised ones keeps them: bytes, with scales beside them that no state lists."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
        self.weight.quant_state = State()


class State:
    def __init__(self):
        self.absmax, self.offset, self.shape = torch.ones(3), torch.zeros(3), (2, 3)  # of one length


@pytest.mark.parametrize("scale", ["absmax", "offset"])
def test_the_scales_of_quantised_weights_count(model, scale):
    model.extra = Packed()
    before = fingerprint(model)
    getattr(model.extra.weight.quant_state, scale)[1] = 2.0
    assert fingerprint(model) != before


@pytest.mark.parametrize("change", [lambda t: t.neg_(), lambda t: t[:2].neg_(), lambda t: t.copy_(t.flip(0))])
def test_sums_tell_contents_apart(change):
    """What tells, on a device, whether the bytes are those that were fetched: signs and order count."""
    tensor = torch.randn(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = sums(tensor.view(torch.uint8))
    change(tensor)
    assert sums(tensor.view(torch.uint8)) != before


def test_sums_of_any_length_are_sums():
    assert sums(torch.zeros(0, dtype=torch.uint8)) == [0] and len(sums(torch.ones(7, dtype=torch.uint8))) == 1


def test_a_set_in_a_configuration_is_told_alike_in_every_process():
    """Sets of texts stand in another order in each process; of these numbers, by which came first."""
    some, others = {0, 8}, {8, 0}
    assert list(some) != list(others)
    assert settings._stated({"rope": some}) == settings._stated({"rope": others})
    assert settings._stated({"rope": some}) != settings._stated({"rope": {0, 9}})


def test_rotary_frequencies_are_told_alike_by_every_processor():
    """They are computed at opening, and rounded otherwise elsewhere; another setting of them is another model."""
    model = tiny_llava()
    plain, rotary = li.wrap(model).fingerprint, first(model, "RotaryEmbedding")
    rotary.inv_freq *= 1 + 1e-7
    assert li.wrap(model).fingerprint == plain
    rotary.inv_freq[1] *= 1.01
    assert li.wrap(model).fingerprint != plain
