"""Rows of attention without the square: computed beside the model's own kernel, equal to those of the whole pattern."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lvlm_interp as li
from lvlm_interp.model.attention import SQUARE
from tests.families import FAMILIES, tiny_example, tiny_model
from tests.tiny import tiny_inputs, tiny_llava

SITES = [f"blocks.*attn.hook_{name}" for name in ("pattern", "attn_scores", "z", "v", "rot_q", "rot_k")]


@pytest.fixture(scope="module", params=FAMILIES)
def seen(request):
    vlm = li.wrap(tiny_model(request.param))
    return vlm, tiny_example(vlm, request.param)


def captured(vlm, x, positions, **options):
    sites = [site for site in SITES if not site.endswith(("rot_k", "_v"))] if positions is not None else SITES
    return vlm.capture(x, sites, positions=positions, **options)


def test_rows_are_those_of_the_whole_pattern(seen):
    vlm, x = seen
    chosen = [-1, 1, -2]
    whole, some = captured(vlm, x, None), captured(vlm, x, chosen)
    for name in some:
        axis = -2 if name.endswith(SQUARE) or name == "logits" else 1
        expected = whole[name].index_select(axis, torch.tensor(chosen) % x.length)
        assert torch.allclose(some[name], expected, atol=1e-5), name
    pattern = next(name for name in some if name.endswith("hook_pattern"))
    assert not torch.allclose(some[pattern], some[pattern].roll(1, -2), atol=1e-5)


def test_the_model_runs_on_its_own_kernel(seen):
    """Its logits are bit for bit those of the plain model, where the eager formula's may round elsewhere."""
    vlm, x = seen
    assert torch.equal(captured(vlm, x, [-1])["logits"], vlm.run(x)[:, -1:])


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor had that was made meanwhile."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.size = max(self.size, *(one.numel() for one in tree_leaves(made) if isinstance(one, Tensor)), 0)
        return made


def largest(run):
    with Largest() as found:
        run()
    return found.size


def test_no_tensor_is_the_square():
    """Beside those that the model's own kernel makes; some releases of torch make one on a CPU."""
    vlm, length, site = li.wrap(tiny_llava()), 250, "blocks.*.attn.hook_pattern"
    x = tiny_inputs(vlm, answer=(7,) * (length - 14))
    assert x.length == length
    plain, rows, whole = (
        largest(run)
        for run in (
            lambda: vlm.run(x),
            lambda: vlm.capture(x, site, positions=[-1, 3]),
            lambda: vlm.capture(x, site),
        )
    )
    assert rows <= plain and whole >= 4 * length**2


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_an_edit_of_attention_is_seen_in_its_rows(kernel):
    """Where something of it is changed, all of it goes by the formula that shows the change."""
    vlm = li.wrap(tiny_llava(kernel))
    x, site = tiny_inputs(vlm), "blocks.1.attn.hook_pattern"
    for edited, change in ((site, lambda value: value * 0.5), ("blocks.1.attn.hook_rot_q", lambda value: value * 3)):
        whole, rows, plain = (
            vlm.capture(x, site, positions=positions, edits=edits)
            for positions, edits in ((None, {edited: change}), ([-1, 4], {edited: change}), ([-1, 4], None))
        )
        assert torch.allclose(rows[site], whole[site][:, :, [-1, 4]], atol=1e-5)
        assert not torch.allclose(rows[site], plain[site], atol=1e-3)


def test_rows_of_a_batch_are_those_of_its_examples():
    vlm = li.wrap(tiny_llava())
    several = [tiny_inputs(vlm), tiny_inputs(vlm, answer=(9, 8, 7, 6, 5))]
    site = "blocks.2.attn.hook_pattern"
    together = vlm.capture(vlm.batch(several), site, positions=[-1])[site]
    for row, x in zip(together, several, strict=True):
        assert torch.allclose(row[..., -x.length :], vlm.capture(x, site, positions=[-1])[site][0], atol=1e-5)


def test_gradients_go_through_the_whole():
    vlm = li.wrap(tiny_llava())
    x, site = tiny_inputs(vlm), "blocks.1.attn.hook_pattern"
    rows = vlm.capture(x, site, positions=[-1], grad=True)
    rows["logits"][0, -1, 5].backward()
    assert rows[site].grad.abs().sum() > 0
