"""What no result can hold, and what no file is: said where it comes in."""

import copy
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import ImageError, InputError, ModelError, OutputError
from lvlm_interp.inputs.media import open_image
from lvlm_interp.storing import packed
from tests.made import made_map
from tests.tiny import tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.mark.parametrize("read", [li.load_result, li.PatchMap.load])
@pytest.mark.parametrize("path", [7, None, ["a"], True])
def test_what_is_no_path_is_no_file(read, path):
    with pytest.raises(InputError, match=r"load(_result)?\(path=…\) takes .*Path; got"):
        read(path)


@pytest.mark.parametrize("read", [li.load_result, li.PatchMap.load])
def test_a_folder_is_no_file(read, tmp_path):
    with pytest.raises(OutputError, match=r"is a directory; a result is a file in it"):
        read(tmp_path)
    with pytest.raises(OutputError, match=r"could not read .*none.safetensors.*No such file"):
        read(tmp_path / "none.safetensors")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(OutputError, match="is a pipe or a device"):
        li.load_result(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("half", [0xDCFF, 0xD800])
def test_a_name_that_could_not_be_read_again_is_not_written(tmp_path, half):
    with pytest.raises(OutputError, match="could not write"):
        made_map(("cat",), torch.zeros).save(tmp_path / f"s{chr(half)}.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_row_of_the_head_that_is_nan_is_the_models_fault():
    model = tiny_llava()
    vlm = li.wrap(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(ModelError, match="gives NaN for this example"):
        li.fit_tuned_lens(vlm, [tiny_inputs(vlm, seed=seed) for seed in range(3)], li.Fitting(steps=2))


SHARED = {
    "a column": pd.DataFrame({"a": [1, 2]}, index=pd.Index([3, 4], name="a")),
    "a number and its text": pd.DataFrame({"1": [1, 2]}, index=pd.Index([3, 4], name=1)),
    "parts of an index": pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([("x", 1)], names=["p", "p"])),
    "an unnamed part": pd.DataFrame({"level_0": [1]}, index=pd.MultiIndex.from_tuples([("x", 1)])),
}


@pytest.mark.parametrize("case", SHARED)
def test_an_index_that_is_named_like_a_column_is_told(case):
    with pytest.raises(ValueError, match=r"the index of a table is called .*rename it"):
        packed(SHARED[case], "", {})


def test_an_unnamed_index_beside_a_column_index_is_kept():
    """The control: pandas calls it otherwise then."""
    frame = pd.DataFrame({"index": [1, 2]}, index=["x", "y"])
    assert list(packed(frame, "", {})["frame"]) == ["level_0", "index"]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("field", ["values", "image_total", "boxes"])
def test_a_map_of_nan_is_none(field, number):
    whole = made_map(("cat",), torch.ones)
    lost = getattr(whole, field).clone()
    lost.view(-1)[0] = number
    changes = {name: getattr(whole, name) for name in ("tokens", "values", "image_total", "boxes", "size", "hide_from")}
    with pytest.raises(InputError, match=rf"PatchMap.{field} holds (NaN|-?inf); it should hold finite numbers"):
        li.PatchMap(**{**changes, field: lost}, provenance=whole.provenance)


def test_a_capture_is_saved_and_not_pickled(vlm, tmp_path):
    capture = vlm.capture(tiny_inputs(vlm), "ln_final.hook_out")
    for keep in (pickle.dumps, lambda value: torch.save(value, tmp_path / "a.pt")):
        with pytest.raises(OutputError, match=r"capture.save\("):
            keep(capture)
    assert li.load_result(capture.save(tmp_path / "a.safetensors")).provenance == capture.provenance


def test_a_capture_is_copied(vlm):
    """The control: copies ask the same model what they are of."""
    capture = vlm.capture(tiny_inputs(vlm), "ln_final.hook_out")
    for one in (copy.copy(capture), copy.deepcopy(capture)):
        assert one.provenance == capture.provenance and list(one) == list(capture)
        assert all(np.array_equal(one[name].numpy(), capture[name].numpy()) for name in capture)
    assert copy.deepcopy(capture)["logits"].data_ptr() != capture["logits"].data_ptr()


def test_a_picture_in_a_closed_folder_is_not_said_to_be_missing(monkeypatch, tmp_path):
    def closed(path, **_):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(ImageError, match=r"a\.png' is in a folder that may not be entered"):
        open_image("closed/a.png")
    monkeypatch.undo()
    with pytest.raises(ImageError, match="no image file at"):
        open_image(tmp_path / "a.png")
