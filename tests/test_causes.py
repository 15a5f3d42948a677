"""Raw errors of which no argument's kind is to blame: tensors that cannot be read, models that cannot be run."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.causes import unread
from lvlm_interp.errors import InputError, MisfitError, ModelError
from lvlm_interp.given import explained
from tests.made import made_map
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.1.hook_resid_post"


def quantised(tensor):
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


UNREAD = {
    "sparse": (torch.Tensor.to_sparse, "to_dense"),
    "meta": (lambda tensor: tensor.to("meta"), "on a device"),
    "quantised": (quantised, "dequantize"),
}


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.mark.parametrize(("made", "way"), UNREAD.values(), ids=UNREAD)
def test_tensors_that_are_not_read_are_named(vlm, x, made, way):
    features, labels = torch.randn(20, 1, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    for call in (
        lambda: li.fit_probes(made(features), labels),
        lambda: li.fit_probes(features, made(labels)),
        lambda: li.fit_probes(features, labels, groups=made(labels)),
        lambda: vlm.capture(x, SITE, positions=made(torch.tensor([1, 2]))),
    ):
        with pytest.raises(InputError, match=way):
            call()


def test_in_lists_and_mappings_too():
    @explained
    def total(several: list) -> float:
        return sum(float(one["a"].numpy().sum()) for one in several)

    assert total([{"a": torch.ones(2)}]) == 2
    with pytest.raises(InputError, match=r"several= holds a sparse tensor: give tensor.to_dense\(\)"):
        total([{"a": torch.ones(2)}, {"a": torch.ones(2).to_sparse()}])
    assert unread(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])).startswith("a nested tensor")
    assert not unread(torch.ones(2, 3).T)


@pytest.mark.parametrize("made", [torch.Tensor.to_sparse, lambda t: t.to("meta")], ids=["sparse", "meta"])
def test_no_result_holds_them(made):
    patches = made_map(["a"], torch.randn)
    with pytest.raises(InputError, match=r"PatchMap.values is a (sparse )?tensor"):
        dataclasses.replace(patches, values=made(patches.values))


@pytest.mark.parametrize("part", ["vision_tower", "language_model", "multi_modal_projector", "lm_head"])
def test_weights_of_two_types_that_do_not_go_together(part):
    """Each part alone: what runs, as with the head, is right; what transformers cannot run names the types."""
    model = tiny_llava()
    next(module for name, module in model.named_modules() if name.endswith(part)).to(torch.bfloat16)
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    with pytest.raises(ModelError, match=rf"several types: .*bfloat16 \(\d+, '.*{part}"):
        vlm.run(x)
    for method in (li.contrast, li.credit, li.attribute):
        if part == "lm_head":  # which is asked for a few rows alone, in its own type
            method(vlm, x)
        else:
            with pytest.raises(ModelError, match="several types"):
                method(vlm, x)
    with torch.autocast("cpu", torch.bfloat16):  # which bridges them
        li.contrast(vlm, x)


def test_a_model_that_does_not_run_is_not_our_error():
    """Where a pass of the engine fails, and a plain one does too, the plain one's error is told."""
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        layer.self_attn.num_key_value_groups = 1
    vlm = li.wrap(model)
    x = tiny_inputs(vlm)
    for method in (li.contrast, li.credit, li.attribute):
        with pytest.raises(MisfitError, match="cannot be run"):
            method(vlm, x)


def test_direct_attribution_closes_under_autocast(vlm, x):
    """Logits are rounded to what autocast computes in: parts miss them by that, and by no more."""
    with torch.autocast("cpu", torch.bfloat16):
        found = li.direct(vlm, x)
    size = found.heads.abs().sum((1, 2)) + found.mlps.abs().sum(1) + found.embedding.abs()
    gap = (found.total - found.logit).abs() / size
    assert float(gap.max()) < 4 * torch.finfo(torch.bfloat16).eps
    assert float((li.direct(vlm, x).total - li.direct(vlm, x).logit).abs().max()) < 1e-4


WRONG = {
    "model": 3,
    "weights": None,
    "method": ("credit",),
    "parameters": "x",
    "seed": "1",
    "edits": "abc",
    "versions": (),
    "example": 5,
}


def test_where_a_result_comes_from_is_looked_at(tmp_path):
    """In a process of its own, where nothing else checks types."""
    for field, value in WRONG.items():
        path = made_map(["a"], torch.randn).save(tmp_path / f"{field}.safetensors")
        _rewrite(path, lambda fields, field=field, value=value: fields["provenance"]["fields"].update({field: value}))
    script = f"""
import lvlm_interp as li
for field in {[*WRONG]}:
    try:
        li.load_result(f"{tmp_path}/{{field}}.safetensors")
    except li.errors.OutputError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    told = run.stdout.splitlines()
    assert len(told) == len(WRONG)
    for field, line in zip(WRONG, told, strict=True):
        assert "damaged" in line and f"Provenance.{field} is" in line


def test_boxes_lie_on_the_picture():
    patches = made_map(["a"], torch.randn)
    dataclasses.replace(patches, boxes=patches.boxes - patches.boxes[0, 1])  # some in the padding
    with pytest.raises(InputError, match="outside of its picture"):
        dataclasses.replace(patches, boxes=patches.boxes + 1000)


def test_a_result_is_laid_out_as_its_file_is(tmp_path):
    """Sums round by how numbers are laid out in memory; a frame must not depend on whether it was saved."""
    patches = made_map(["a", "b"], torch.randn, (3, 5))
    strewn = dataclasses.replace(patches, values=patches.values.transpose(1, 2).contiguous().transpose(1, 2))
    assert strewn.values.stride() == patches.values.stride() and strewn == patches


def _rewrite(path, change):
    """A file whose header says something else, and whose digest is right."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from lvlm_interp.results import _digest

    with safe_open(path, "pt") as file:
        header, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    value = json.loads(header["value"])
    change(value["fields"])
    header["value"] = json.dumps(value)
    save_file(tensors, path, metadata=header | {"digest": _digest(header, tensors)})
