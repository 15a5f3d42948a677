"""`lvlm-interp check DIR` on directories as users have them: a model, its processor, and what may be wrong there."""

import json

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.opening.checks import CHECKS
from lvlm_interp.opening.conformance import check
from tests.families import tiny_model
from tests.saved import SAVED, UNOPENED, save


def one_line(err):
    lines = err.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize("name", SAVED)
def test_a_directory_of_every_kind(name, tmp_path):
    if name in UNOPENED:
        with pytest.raises(ModelError, match=r"needs the package torchvision.*pip install torchvision"):
            li.load(save(name, tmp_path))
        return
    vlm = li.load(save(name, tmp_path))
    found = check(vlm)
    assert found.ok, found.to_frame().to_string()
    assert [row.check for row in found.checks] == list(CHECKS) and found.model_type == name


def test_the_command_line(run, tmp_path):
    status, out, err = run("check", save("llava", tmp_path))
    assert status == 0 and not err.strip()
    assert all(name in out for name in CHECKS) and out.count("holds") == len(CHECKS) and "FAILS" not in out


def test_half_precision_on_the_command_line(run, tmp_path):
    status, out, _ = run("check", save("llava", tmp_path, tiny_model("llava", dtype=torch.bfloat16)), "--json")
    found = json.loads(out)
    assert status == 0 and found["ok"] and found["provenance"]["dtype"] == "bfloat16"


def test_weights_that_are_not_numbers(run, tmp_path):
    model = tiny_model("llava")
    with torch.no_grad():
        model.lm_head.weight[3, 4] = float("nan")
    status, out, err = run("check", save("llava", tmp_path, model))
    assert (status, out) == (1, "") and one_line(err) and "NaN" in err and "lm_head.weight" in err


def test_a_processor_of_another_model(run, tmp_path):
    """Sixteen image tokens for four features: the model's own error, in one line, and no table of failed checks."""
    folder = save("llava", tmp_path, patch_size=7)
    with pytest.raises(InputError, match="16 image tokens"):
        check(li.load(folder))
    status, out, err = run("check", folder)
    assert (status, out) == (1, "") and one_line(err) and "16 image tokens" in err and "processor" in err


def test_a_check_that_fails(run, tmp_path):
    """Pixels that make no difference: the table says which check, what was measured and what to do."""
    model = tiny_model("llava")
    with torch.no_grad():
        for weight in model.base_model.multi_modal_projector.parameters():
            weight.zero_()
    status, out, err = run("check", save("llava", tmp_path, model))
    assert status == 1 and not err.strip() and out.count("FAILS") == 1 and "leak" in out


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_that_lacks_a_file(run, gone, tmp_path):
    (save("llava", tmp_path) / gone).unlink()
    status, out, err = run("check", tmp_path)
    assert (status, out) == (1, "") and one_line(err), err
