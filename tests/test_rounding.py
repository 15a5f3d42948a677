"""Rounding is told from faults: by what it does in the model at hand, on the machine at hand."""

import functools
import math

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import lvlm_interp as li
from lvlm_interp.compat import has_transformers
from lvlm_interp.errors import ModelError
from lvlm_interp.model import attention
from lvlm_interp.model.attention import implementation
from lvlm_interp.opening import checks, conformance, rounding
from lvlm_interp.opening.checks import parity, positions
from lvlm_interp.opening.conformance import check, check_at_load
from lvlm_interp.opening.rounding import allowed, apart, float_error
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

LARGE = 1000.0


def example(name="llava", bias=0.0, dtype=torch.float32):
    """A bias of all keys adds the same to all scores of a query: to exact attention nothing, to floats lost digits.

    Some models that people use have biases of some hundreds there.
    """
    model = tiny_model(name, dtype=dtype)
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if parameter.endswith("k_proj.bias"):
                weight.add_(bias)
    vlm = li.wrap(model)
    return vlm, tiny_example(vlm, name)


def failed(vlm, x):
    return [row.check for row in check(vlm, x).checks if not row.ok]


@torch.no_grad()
def between_kernels(vlm, x):
    plain = vlm.run(x)
    with implementation(vlm.model, "eager"):
        return apart(vlm.run(x), plain) / float_error(vlm, plain)


@pytest.mark.parametrize(("name", "bias"), [("llava", LARGE), ("kosmos-2", 3 * LARGE)])
def test_a_model_whose_own_kernels_round_apart(name, bias):
    vlm, x = example(name, bias)
    assert between_kernels(vlm, x) > 2
    found = check(vlm, x)
    assert found.ok and "one unit in the last place" in found["parity"].detail
    assert found["parity"].measured > 2 * float_error(vlm, vlm.run(x))
    if name == "kosmos-2" and not has_transformers("5.23"):
        return  # older releases give its eager kernel no mask, so that kernels differ in more than rounding
    quiet, y = example(name)
    assert between_kernels(quiet, y) < 1 and check(quiet, y)["parity"].limit == float_error(quiet, quiet.run(y))


def test_a_mask_function_left_out_shows_beside_rounding(monkeypatch):
    vlm, x = example(bias=LARGE)
    for kernel in ("eager", "sdpa"):
        nothing = attention.PREFIX + kernel
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, nothing, lambda *args, **kwargs: None)
    monkeypatch.setattr(attention, "_additive", lambda mask, *rest: mask)
    assert failed(vlm, x) == ["parity"]


def off_by_a_little(monkeypatch, by):
    """Transformers' own kernel computes something else than its eager formula: what is captured is not what runs."""
    own = AttentionInterface._global_mapping["sdpa"]

    @functools.wraps(own)  # else it would be a function of somebody's own
    def other(module, query, key, value, attention_mask, **options):
        return own(module, query * (1 + by), key, value, attention_mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", other)


@pytest.mark.parametrize(
    ("bias", "dtype", "by"),
    [(0, torch.float32, 1e-3), (LARGE, torch.float32, 0.1), (0, torch.float16, 0.5), (0, torch.bfloat16, 2)],
    ids=str,
)
def test_kernels_that_differ_by_more_than_rounding_excuse_nothing(bias, dtype, by, monkeypatch):
    vlm, x = example(bias=bias, dtype=dtype)
    assert parity(vlm, x).ok  # the control
    off_by_a_little(monkeypatch, by)
    assert between_kernels(vlm, x) > 2
    found = check(vlm, x)
    assert [row.check for row in found.checks if not row.ok] == ["parity"], found.to_frame().to_string()


def test_models_that_round_are_opened(monkeypatch):
    vlm, x = example(bias=LARGE)
    monkeypatch.setattr(conformance, "_words", lambda _: x)  # its language model alone is quiet
    check_at_load(vlm)
    off_by_a_little(monkeypatch, 0.1)
    with pytest.raises(ModelError, match=r"capturing changes.*one unit in the last place"):
        check_at_load(vlm)


def in_another_order(vlm, monkeypatch, units):
    """The engine's own passes, as if sums were rounded elsewhere in each layer of the decoder."""
    score, generator = checks.score, torch.Generator().manual_seed(1)
    eps = units * torch.finfo(torch.float32).eps

    def moved(_, args, kwargs):
        states = args[0]
        return (states * (1 + eps * torch.randn(states.shape, generator=generator)), *args[1:]), kwargs

    moved.__module__ = "lvlm_interp."  # a hook of somebody's own would keep each row in its place

    def elsewhere(*args, **kwargs):
        handles = [layer.register_forward_pre_hook(moved, with_kwargs=True) for layer in vlm.decoder.layers]
        try:
            return score(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(checks, "score", elsewhere)


@pytest.mark.parametrize("bias", [0, 300])
def test_sums_in_another_order_move_no_position(bias, monkeypatch):
    vlm, x = example("qwen2_5_vl", bias)
    with monkeypatch.context() as patch:
        in_another_order(vlm, patch, 8 if bias else 1)
        found = positions(vlm, x)
    assert found.ok and ("one unit in the last place" in found.detail) == bool(bias), found
    in_another_order(vlm, monkeypatch, 1000)
    assert not positions(vlm, x).ok


def test_what_may_pass_for_rounding_is_bounded():
    assert rounding.MOST < 0.01 and rounding.MOST_IN_HALF <= 0.1  # a mask left out moves logits by a twelfth
    for bias, dtype, most in ((1e6, torch.float32, rounding.MOST), (1e3, torch.bfloat16, rounding.MOST_IN_HALF)):
        vlm, x = example("llava", bias if dtype == torch.float32 else 0, dtype)
        vlm.accepted = True
        with torch.no_grad():
            plain = vlm.run(x)
            found = allowed(vlm, lambda vlm=vlm, x=x: vlm.run(x), plain, math.inf)
        assert found.limit <= max(most * rounding.size(plain), float_error(vlm, plain))
    with torch.no_grad():
        broken = allowed(vlm, lambda: plain * math.nan, plain, math.nan)
    assert broken.limit == float_error(vlm, plain)  # and what is not a number is not within it


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("nemotron_h_omni", torch.bfloat16), ("nemotron_h_omni", torch.float16), ("minicpmv4_7", torch.float16)],
    ids=str,
)
def test_half_precision_where_logits_are_float32_or_parts_keep_their_kernel(name, dtype):
    found = check(*example(name, dtype=dtype))
    assert found.ok, found.to_frame().to_string()


def test_a_language_model_in_half_precision_behind_a_tower_in_single():
    """Its rounding is that of the language model, whatever the first weight says."""
    model = tiny_llava()
    model.model.language_model.to(torch.bfloat16)
    model.lm_head.to(torch.bfloat16)
    vlm = li.wrap(model)
    assert vlm.dtype is torch.bfloat16 and check(vlm, tiny_inputs(vlm))["parity"].ok
    assert li.contrast(vlm, tiny_inputs(vlm)).provenance.dtype == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_that_are_never_said_are_alike_in_any_type(dtype):
    """Chameleon gives its image tokens the lowest number of the type that it computes in."""
    lowest = torch.tensor([torch.finfo(dtype).min, 1.0], dtype=dtype)
    wide = torch.tensor([torch.finfo(torch.float32).min, 1.5])
    assert apart(lowest, wide) == 0.5 and apart(lowest.float(), wide) == 0.5
    assert apart(torch.tensor([0.0, 1.0]), wide) > 1e38  # the control: said by one
    assert rounding.size(lowest.float()) == 1.0
    vlm = li.wrap(tiny_model("chameleon", dtype=dtype))
    assert check(vlm, tiny_example(vlm, "chameleon")).ok
