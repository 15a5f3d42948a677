"""Weights in several files: what their index says, and what the files themselves hold."""

import json

import pytest
from safetensors.torch import load_file, save_file

import lvlm_interp as li
from tests.saved import save
from tests.test_refusals import refused


@pytest.fixture
def folder(tmp_path):
    return save("llava", tmp_path / "llava")


def shards(folder):
    li.load(folder).model.save_pretrained(folder / "cut", max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    for file in (folder / "cut").iterdir():
        file.replace(folder / file.name)
    return folder / "model.safetensors.index.json"


def test_an_index_that_names_a_file_that_is_not_there(folder):
    index = shards(folder)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    assert f"{index} names {lost.name!r} as the file of " in refused(folder)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda weights: {}, "has no 'weight_map'"),
        (lambda weights: {"weight_map": 5}, "has weight_map: 5"),
        (lambda weights: {"weight_map": {}}, "has weight_map: {}"),
        (lambda weights: {"weight_map": {**weights, "lm_head.weight": 5}}, "names 5 as the file of 'lm_head.weight'"),
    ],
)
def test_an_index_of_another_kind(folder, change, wrong):
    index = shards(folder)
    index.write_text(json.dumps(change(json.loads(index.read_text())["weight_map"])))
    assert f"{index} {wrong}" in refused(folder)


def test_an_index_that_names_two_files_for_a_weight(folder):
    index = shards(folder)
    first, second = sorted(file.name for file in folder.glob("*.safetensors"))[:2]
    text = index.read_text()
    index.write_text(text.replace('"weight_map": {', f'"weight_map": {{ "w": "{first}", "w": "{second}",', 1))
    assert f"{index} names two files for 'w': {first!r} and {second!r}" in refused(folder)


def reheld(file, weight, value):
    """A file of weights that holds one more."""
    save_file({**load_file(file), weight: value}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("swapped", [False, True])
def test_a_weight_that_two_files_hold_with_other_values(folder, swapped):
    """Whichever of them the index names."""
    index = shards(folder)
    whole = json.loads(index.read_text())
    weight = next(iter(whole["weight_map"]))
    first = folder / whole["weight_map"][weight]
    second = next(file for file in sorted(folder.glob("*.safetensors")) if file != first)
    reheld(second, weight, load_file(first)[weight] + 1)
    if swapped:
        whole["weight_map"][weight] = second.name
        index.write_text(json.dumps(whole))
    files = " and ".join(repr(file.name) for file in sorted([first, second]))
    said = refused(folder)
    assert f"{index} is of files that do not agree: {files} both hold {weight!r}, with other values" in said
    reheld(second, weight, load_file(first)[weight])
    assert li.load(folder).processor is not None  # the control: both say the same


def test_a_weight_that_the_index_lists_and_no_file_holds(folder):
    index, weight = shards(folder), "no.weight.of.the.model"
    whole = json.loads(index.read_text())
    file = whole["weight_map"][weight] = next(iter(whole["weight_map"].values()))
    index.write_text(json.dumps(whole))
    assert f"names {file!r} as the file of {weight!r}, and neither it nor another file holds" in refused(folder)


def test_a_file_that_the_index_does_not_name(folder):
    index = shards(folder)
    first, *_, last = sorted(folder.glob("*.safetensors"))
    extra = folder / last.name.replace("-0", "-9", 1)
    extra.write_bytes(first.read_bytes())
    assert f"{index} does not name {extra.name!r}, which is one of its files by its name" in refused(folder)
    extra.rename(folder / "consolidated.safetensors")
    assert li.load(folder).processor is not None  # the control: of another series, and nothing reads it


def test_an_index_beside_one_file_of_all_weights_is_passed_over(folder):
    """The control: transformers reads that file."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "none.safetensors"}}))
    assert li.load(folder).processor is not None
