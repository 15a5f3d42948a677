"""Tensors of the wrong axes or kinds of numbers: an error that names them, where they are read and where they run."""

import dataclasses

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, MisfitError
from tests.families import tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def qwen():
    vlm = li.wrap(tiny_model("qwen2_vl"))
    return vlm, tiny_example(vlm, "qwen2_vl")


def remade(vlm, x, **changed):
    return vlm.inputs(answer_start=x.answer_start, **{**x.model_inputs, **changed})


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"logits_to_keep": 2}, "logits_to_keep cannot be given.*at all positions"),
        ({"num_logits_to_keep": 2}, "num_logits_to_keep cannot be given"),
        ({"output_attentions": True}, "output_attentions cannot be given.*vlm.capture"),
        ({"use_cache": True}, "use_cache= is set by what runs"),
        ({"past_key_values": ()}, "past_key_values cannot be given.*run whole"),
        ({"attn_implementation": "eager"}, "attn_implementation= is a tensor.*an option that is a number"),
        ({"attention_mask": np.ones((1, 17))}, "attention_mask= is a tensor.*torch.as_tensor.*got a ndarray"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_change_what_is_read_are_refused(vlm, option, said):
    with pytest.raises(InputError, match=said):
        remade(vlm, tiny_inputs(vlm), **option)


def test_what_is_none_is_not_there_and_whole_numbers_are_of_any_kind(vlm):
    x = tiny_inputs(vlm)
    made = remade(vlm, x, position_ids=None, foo=None, input_ids=x.input_ids.short())
    assert "foo" not in made.model_inputs and made.input_ids.dtype == torch.long
    assert torch.equal(li.contrast(vlm, made).delta, li.contrast(vlm, remade(vlm, x)).delta)


def test_the_position_that_predicts_the_answer_counts(vlm):
    x = tiny_inputs(vlm)
    mask = torch.ones_like(x.input_ids)
    mask[0, x.answer_start - 1] = 0
    with pytest.raises(InputError, match=f"0 at position {x.answer_start - 1}, which predicts the answer"):
        remade(vlm, x, attention_mask=mask)
    mask[0, x.answer_start - 1], mask[0, 0] = 1, 0
    assert li.contrast(vlm, remade(vlm, x, attention_mask=mask)).delta.isfinite().all()


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (torch.tensor([1, 4, 6]), r"image_grid_thw: int64 \[3\]"),
        (torch.tensor([[[1, 4, 6]]]), r"image_grid_thw: int64 \[1, 1, 3\]"),
        (torch.zeros(1, 3, dtype=torch.long), r"image_grid_thw: int64 \[1, 3\].*ZeroDivisionError"),
        (torch.zeros(1, 3, dtype=torch.long, device="meta"), r"on meta"),
        (torch.tensor([[1, 4]]), r"image_grid_thw: int64 \[1, 2\]"),
        (torch.tensor(1), r"image_grid_thw: int64 \[\]"),
        (torch.ones(1, 3, dtype=torch.bool), r"image_grid_thw: bool \[1, 3\]"),
    ],
    ids=["an axis less", "an axis more", "zeros", "meta", "a number less", "a number alone", "truths"],
)
def test_what_cannot_be_read_is_named_with_its_shape(qwen, grid, said):
    with pytest.raises(MisfitError, match=rf"no example can be made.*pixel_values: float32.*{said}|{said}") as raised:
        remade(*qwen, image_grid_thw=grid)
    assert "vlm.prepare" in str(raised.value) and raised.value.__cause__ is not None


def test_pixels_of_a_video_without_its_grid(qwen):
    vlm, x = qwen
    with pytest.raises(InputError, match=r"no example can be made.*pixel_values_videos: float32.*video_grid_thw"):
        remade(vlm, x, pixel_values_videos=x.model_inputs["pixel_values"])


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda v: v.to(torch.complex64)], ids=["sparse", "complex"])
def test_tensors_are_plain(vlm, change):
    x = tiny_inputs(vlm)
    with pytest.raises(InputError, match=r"pixel_values is a plain tensor.*got (float32, sparse|complex64)"):
        remade(vlm, x, pixel_values=change(x.model_inputs["pixel_values"]))


@pytest.mark.parametrize("shape", [(1, 16), (1, 18), (2, 17)])
def test_position_ids_are_one_of_each_token(vlm, shape):
    """Those of two rows would be broadcast."""
    said = rf"position_ids are \[1, 17\] as input_ids.*got \[{shape[0]}, {shape[1]}\]"
    with pytest.raises(InputError, match=said):
        remade(vlm, tiny_inputs(vlm), position_ids=torch.zeros(shape, dtype=torch.long))


def test_roles_may_come_one_by_one(vlm):
    x = tiny_inputs(vlm)
    assert vlm.inputs(**x.model_inputs, answer_start=x.answer_start, roles=iter(x.roles)).roles == x.roles


UNFIT = {
    "one picture": (
        "pixel_values",
        lambda x: x.pixels["pixel_values"][0],
        r"pixel_values: float32 \[3, 28, 28\]",
    ),
    "a channel less": ("pixel_values", lambda x: x.pixels["pixel_values"][:, :2], r"pixel_values: float32 \[1, 2, "),
    "mask short": ("attention_mask", lambda x: torch.zeros(1, 1, 17, 16), r"attention_mask: float32 \[1, 1, 17, 16\]"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_the_model_cannot_be_run_with_is_named(vlm, case):
    name, made, said = UNFIT[case]
    x = tiny_inputs(vlm)
    x = dataclasses.replace(x, model_inputs={**x.model_inputs, name: made(x)})
    for run in (vlm.run, lambda x: vlm.capture(x, SITE)):
        with pytest.raises(MisfitError, match=rf"cannot be run with.*{said}.*vlm.prepare") as raised:
            run(x)
        assert raised.value.__cause__ is not None


def test_scores_and_answers_name_them_too(vlm):
    name, made, said = UNFIT["one picture"]
    x = remade(vlm, y := tiny_inputs(vlm, roles=False), **{name: made(y)})
    for run in (lambda x: li.score(vlm, x, x.everything), lambda x: vlm.generate(x, 1)):
        with pytest.raises(InputError, match=said):
            run(x)


def raising(kind):
    def hook(*args):
        raise kind("The size of tensor a (3) must match the size of tensor b (4)")

    return hook


def test_errors_of_hooks_stay_their_own(vlm):
    """The control: of a hook, of one that takes itself off before, of an edit that makes the model fail later."""
    x, part = tiny_inputs(vlm), vlm.decoder.layers[0]
    handle = part.register_forward_hook(raising(RuntimeError))
    with pytest.raises(RuntimeError, match="size of tensor a"):
        vlm.run(x)
    handle.remove()

    def once(*args):
        handle.remove()
        raise IndexError("of my own")

    handle = part.register_forward_hook(once)
    with pytest.raises(IndexError, match="of my own"):
        vlm.run(x)
    handle = part.register_forward_hook(lambda module, args, output: output[:, :-1])
    with pytest.raises(RuntimeError):
        vlm.run(x)
    handle.remove()
    assert vlm.run(x).isfinite().all()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_want_of_memory_is_no_fault_of_inputs(vlm, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(type(vlm.decoder.layers[0].mlp), "forward", full)
    with pytest.raises(RuntimeError, match="memory") as raised:
        vlm.run(tiny_inputs(vlm))
    assert raised.value is error
