"""Models from directories: where their weights are kept, and whose code is run."""

import json
import re
import shutil
import subprocess
import sys
from operator import attrgetter

import huggingface_hub.constants
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import lvlm_interp as li
from lvlm_interp.compat import has_transformers
from lvlm_interp.counterfactuals import swap
from lvlm_interp.errors import ModelError
from lvlm_interp.opening.conformance import check
from tests.families import tiny_model
from tests.saved import SAVED, UNOPENED, WITH_VIDEO, save, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def plain(folder):
    return li.load(folder)


def asked(vlm):
    return vlm.prepare("What is it?", Image.linear_gradient("L").crop((0, 20, 90, 200)), answer="A cat.")


def rewritten(folder, change):
    """The same directory with other weights in its file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


# --- which commit it is -----------------------------------------------------------------------------------------------


def test_a_model_of_a_hub_says_its_commit(folder, tmp_path, monkeypatch):
    """From the cache of a hub: the commit that was asked for, or that the branch is at."""
    kept, commits = tmp_path / "models--own--llava", ("1" * 40, "2" * 40)
    places = [shutil.copytree(folder, kept / "snapshots" / commit) for commit in commits]
    rewritten(places[0], lambda weights: {name: weight * 2 for name, weight in weights.items()})
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commits[1])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    told = [li.load("own/llava", revision=revision).provenance("none") for revision in (None, "main", *commits)]
    assert [one.revision for one in told] == [commits[1], commits[1], *commits]
    assert {one.model for one in told} == {"own/llava"}
    assert told[0].weights == told[3].weights != told[2].weights
    assert li.load(folder).provenance("none").revision is None


# --- what its files hold ----------------------------------------------------------------------------------------------


def test_weights_that_are_not_there(tmp_path):
    """Transformers would fill them with random numbers, and the diagnosis would be of those."""
    lacking = "language_model.model.layers.1.mlp.up_proj.weight"
    folder = save("llava", tmp_path / "llava")
    rewritten(folder, lambda weights: {name: weight for name, weight in weights.items() if name != lacking})
    with pytest.raises(ModelError, match=r"1 weights are not in the files.*layers\.1\.mlp\.up_proj.*wrap\("):
        li.load(folder)


def test_weights_of_another_shape(tmp_path):
    folder = save("llava", tmp_path / "llava")
    cut = "language_model.model.layers.1.mlp.up_proj.weight"
    rewritten(folder, lambda weights: {k: v[:5].clone() if k == cut else v for k, v in weights.items()})
    with pytest.raises(ModelError, match="could not open"):
        li.load(folder)


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_size": -1}, {"num_hidden_layers": "a"}, {"num_attention_heads": 0}, {"hidden_act": "banana"}],
    ids=str,
)
def test_a_configuration_that_means_nothing(wrong, tmp_path):
    file = save("llava", tmp_path / "llava") / "config.json"
    found = json.loads(file.read_text())
    found["text_config"] |= wrong
    file.write_text(json.dumps(found))
    with pytest.raises(ModelError, match="could not open"):
        li.load(file.parent)


def test_a_file_that_was_cut_off(tmp_path):
    file = save("llava", tmp_path / "llava") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="could not open"):
        li.load(file.parent)


# --- device maps ------------------------------------------------------------------------------------------------------

TEXT, LAYER = "model.language_model", "model.language_model.layers"
HERE = ("model.vision_tower", "model.multi_modal_projector", f"{TEXT}.embed_tokens", f"{TEXT}.norm", f"{LAYER}.0")
MAPS = {
    "one device": {"": "cpu"},
    "auto": "auto",
    "some layers on disk": {**dict.fromkeys(HERE, "cpu"), f"{LAYER}.1": "disk", f"{LAYER}.2": "disk", "lm_head": "cpu"},
    "unembedding on disk": {"model": "cpu", "lm_head": "disk"},
    "all on disk": {"model": "disk", "lm_head": "disk"},
}


@pytest.fixture(params=MAPS)
def mapped(request, folder, tmp_path):
    if request.param == "all on disk" and not has_transformers("5.13"):
        pytest.skip("transformers before 5.13 does not fetch the parts of a model that is all on disk")
    vlm = li.load(folder, device_map=MAPS[request.param], offload_folder=str(tmp_path))
    return vlm, "disk" in request.param


def on_disk(vlm):
    return sum(weight.is_meta for weight in vlm.model.parameters())


def test_device_maps_change_no_number(mapped, plain):
    vlm, offloaded = mapped
    assert bool(on_disk(vlm)) == offloaded  # the control: the parts are where they were asked to be
    x, y = asked(plain), asked(vlm)
    expected, found = plain.capture(x, "*"), vlm.capture(y, "*")
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(
        found["logits"], plain.capture(x, "*", edits={"projector.hook_out": torch.zeros_like})["logits"]
    )
    assert vlm.fingerprint == plain.fingerprint
    assert torch.equal(li.contrast(vlm, y).delta, li.contrast(plain, x).delta)
    assert torch.equal(vlm.readout.weight, plain.readout.weight) and vlm.readout.vocabulary == 200
    assert torch.equal(li.direct(vlm, y).heads, li.direct(plain, x).heads)


def test_device_maps_are_read_truly(mapped):
    vlm, _ = mapped
    before = on_disk(vlm)
    found = check(vlm)
    assert found.ok, found.to_frame().to_string()
    assert on_disk(vlm) == before  # what was fetched was let go


def test_edits_and_gradients_with_parts_on_disk(folder, plain, tmp_path):
    vlm = li.load(folder, device_map=MAPS["some layers on disk"], offload_folder=str(tmp_path))
    site, slopes, logits = "blocks.1.attn.hook_z", [], []
    for one in (vlm, plain):
        x = asked(one)
        kept = one.capture(x, site, grad=True)
        slopes.append(torch.autograd.grad(kept["logits"][0, -1, 7], kept[site])[0])
        logits.append(one.capture(x, site, edits={site: torch.zeros_like})["logits"])
    assert torch.equal(*slopes) and slopes[0].abs().max() > 0
    assert torch.equal(*logits) and not torch.equal(logits[0], plain.run(asked(plain)))


def test_weights_on_disk_that_are_not_numbers(tmp_path):
    model = tiny_model("llava")
    with torch.no_grad():
        model.base_model.language_model.layers[2].mlp.up_proj.weight[3, 4] = float("inf")
    folder = save("llava", tmp_path / "broken", model)
    with pytest.raises(ModelError, match=r"NaN or infinity.*layers\.2\.mlp\.up_proj"):
        li.load(folder, device_map=MAPS["some layers on disk"], offload_folder=str(tmp_path))


def test_weights_that_are_nowhere():
    with pytest.raises(ModelError, match=r"weights of .* are on no device, 'model\.vision_tower"):
        li.wrap(tiny_model("llava").to("meta"))


@pytest.mark.parametrize("part", ["base_model", "base_model.language_model"])
def test_a_part_of_a_model_gives_no_words(plain, part):
    """Its layers can be run, so that only a lens or an answer would tell."""
    with pytest.raises(ModelError, match=r"so it gives no words.*open the whole one"):
        li.wrap(attrgetter(part)(plain.model), plain.processor)


def test_a_device_and_a_device_map(folder):
    with pytest.raises(ModelError, match="give one of them"):
        li.load(folder, device="cpu", device_map="auto")


# --- families whose processors read videos too ------------------------------------------------------------------------

TORCHVISION = transformers.utils.is_torchvision_available()


WITHOUT = """
import json, sys

sys.modules["torchvision"] = None  # as if it were not installed
import lvlm_interp as li
from lvlm_interp.errors import ModelError

for folder in sys.argv[1:]:
    try:
        li.load(folder)
    except ModelError as error:
        print(json.dumps([folder, str(error)]))
"""


def test_without_torchvision_the_error_says_what_to_install(tmp_path):
    folders = {str(described(name, tmp_path / name)) for name in WITH_VIDEO}
    told = subprocess.run([sys.executable, "-c", WITHOUT, *folders], capture_output=True, text=True, check=True)
    errors = dict(map(json.loads, told.stdout.splitlines()))
    assert set(errors) == folders
    for error in errors.values():
        assert re.search(r"processor needs the package torchvision.*pip install torchvision", error), error
        assert "\n" not in error


def described(name, folder):
    """A model with a processor that is only named: what it would need is missing."""
    tiny_model(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    kind = WITH_VIDEO[name].kind
    part = kind.replace("2_5", "2").removesuffix("Processor")  # Qwen2.5-VL has the parts of Qwen2-VL
    made = {
        "processor_class": kind,
        "image_processor": {"image_processor_type": f"{part}ImageProcessor"},
        "video_processor": {"video_processor_type": f"{part}VideoProcessor"},
    }
    (folder / "processor_config.json").write_text(json.dumps(made))
    return folder


@pytest.mark.skipif(not TORCHVISION, reason="transformers opens these processors with torchvision only")
@pytest.mark.parametrize("name", WITH_VIDEO)
def test_processors_that_read_videos_too(name, tmp_path):
    """Pictures through the family's own processor: roles, several images, boxes, checks."""
    if name == "smolvlm":
        pytest.importorskip("num2words")  # its processor needs that too
    vlm = li.load(save(name, tmp_path))
    picture = Image.linear_gradient("L").crop((0, 20, 90, 200))
    x = vlm.prepare("What?", picture, context="a <image> <video>", system="Be brief.", answer="A cat.")
    said = {r: "".join(t for t, role in zip(x.tokens, x.roles, strict=True) if role == r) for r in x.present}
    assert (said["system"], said["context"], said["question"]) == ("Be brief.", "a <image> <video>", "What?")
    assert said["answer"] == "A cat." and "<image>" not in said["template"]
    y = vlm.prepare("Which?", [picture, picture.rotate(90, expand=True)], answer="A cat.")
    for example in (x, y):
        found = check(vlm, example)
        assert found.ok, found.to_frame().to_string()
        assert all(view.has_grid and view.patches is not None for view in example.images)
    assert isinstance(vlm.generate(x, 3), str) and li.credit(vlm, y).roles == ("question", "image")
    assert li.attribute(vlm, y, image=1).values.shape[1:] == y.images[1].grid


# --- other pictures in the place of an image --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", [*SAVED, *(WITH_VIDEO if TORCHVISION else ())])
def test_pictures_that_are_swapped_are_processed_as_in_a_prompt(name, count, tmp_path):
    if name in UNOPENED:
        pytest.skip(f"transformers {transformers.__version__} opens the processor of {name} with torchvision only")
    vlm = li.load(save(name, tmp_path))
    pictures = [Image.linear_gradient("L").crop((0, 20, 90, 200)), Image.radial_gradient("L").crop((0, 0, 120, 90))]
    others = [picture.rotate(180) for picture in pictures]
    x, y = (vlm.prepare("What?", some[:count], answer="A cat.") for some in (pictures, others))
    swapped = vlm.with_pictures(x, [view.picture for view in y.images])
    assert all(torch.equal(swapped.model_inputs[k], y.model_inputs[k]) for k in y.model_inputs)
    assert not torch.equal(swapped.model_inputs["pixel_values"], x.model_inputs["pixel_values"])  # the control
    assert li.contrast(vlm, x, without=swap(others[0])).delta.isfinite().all()


# --- code that a directory brings -------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlavaConfig, LlavaForConditionalGeneration
Path({trace!r}).touch()

class Config(LlavaConfig):
    model_type = "brandnew"

class Model(LlavaForConditionalGeneration):
    config_class = Config
"""


@pytest.fixture
def brandnew(tmp_path, monkeypatch):
    """A LLaVA under a name that transformers does not know, and what its code leaves behind when it is run."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, trace = save("llava", tmp_path / "brandnew"), tmp_path / "it ran"
    described = json.loads((folder / "config.json").read_text())
    described["model_type"] = "brandnew"
    described["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "code.py").write_text(CODE.format(trace=str(trace)))
    # Transformers knows the old names of LLaVA's weights by its model type only.
    rewritten(folder, lambda _: tiny_model("llava").state_dict())
    return folder, trace


@pytest.mark.parametrize("processor", [True, False], ids=["with processor", "without"])
def test_remote_code_is_not_run_without_consent(brandnew, processor):
    folder, trace = brandnew
    if not processor:
        (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        li.load(folder)
    assert not trace.exists()


def test_remote_code_with_consent(brandnew, plain):
    """The control; and its type, which no table has, is accepted after the checks only."""
    folder, trace = brandnew
    vlm = li.load(folder, trust_remote_code=True)
    assert trace.exists() and vlm.model.config.model_type == "brandnew" and not vlm.accepted
    x = asked(vlm)
    assert vlm.accepted
    found, expected = vlm.capture(x, "*"), plain.capture(asked(plain), "*")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_alone_is_told_apart_from_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter of peft, and no model\..*load_adapter"):
        li.load(tmp_path)
