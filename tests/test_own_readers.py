"""Readers of pictures and words that a directory names: those of another type of model are told when it is opened."""

import json

import pytest
from transformers import AutoProcessor
from transformers.utils import is_torchvision_available

import lvlm_interp as li
from lvlm_interp.opening.fault import PICTURE
from lvlm_interp.opening.own import need_own_readers
from tests.families import tiny_model
from tests.saved import SAVED, UNOPENED, save
from tests.test_refusals import refused


def renamed(file, name, *path):
    """A file of JSON with another text in one of its fields."""
    whole = inside = json.loads(file.read_text())
    for part in path[:-1]:
        inside = inside[part]
    inside[path[-1]] = name
    file.write_text(json.dumps(whole))
    return file


@pytest.mark.parametrize("field", ["image_processor_type", "feature_extractor_type"])
@pytest.mark.parametrize("old", [False, True])
def test_a_reader_of_pictures_for_another_model(tmp_path, old, field):
    """In a file of its own too, as older releases write it, and under its older name."""
    folder = save("llava", tmp_path)
    file = folder / "processor_config.json"
    whole = json.loads(file.read_text())
    told = {k: v for k, v in whole["image_processor"].items() if not k.endswith("_type")}
    told[field] = "LlavaNextImageProcessor" if field.startswith("image") else "LlavaNextFeatureExtractor"
    if old:
        file.write_text(json.dumps({k: v for k, v in whole.items() if k != "image_processor"}))
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(told))
    else:
        file.write_text(json.dumps({**whole, "image_processor": told}))
    said = refused(folder)
    assert f"{file} has {field}: {told[field]!r}, which makes pixel_values of 5 axes" in said
    assert "a model of type 'llava' takes pixel_values of 4 axes. Write image_processor_type: '" in said


@pytest.mark.parametrize("other", ["SiglipImageProcessor", "CLIPImageProcessor", "CLIPImageProcessorFast"])
def test_a_reader_that_makes_the_same_axes_will_do(tmp_path, other):
    """The control: published LLaVAs have several."""
    folder = save("llava", tmp_path)
    renamed(folder / "processor_config.json", other, "image_processor", "image_processor_type")
    vlm = li.load(folder)
    assert vlm.run(vlm.prepare("What?", PICTURE)).isfinite().all()


@pytest.mark.skipif(not is_torchvision_available(), reason="its processor needs torchvision")
def test_a_tokenizer_of_another_model(tmp_path):
    folder = save("qwen2_vl", tmp_path)
    file = renamed(folder / "tokenizer_config.json", "BertTokenizer", "tokenizer_class")
    said = refused(folder)
    assert f"{file} has tokenizer_class: 'BertTokenizer', with which 'What is it, Sir?' is read as" in said


@pytest.mark.parametrize("name", sorted(SAVED.keys() - UNOPENED))
def test_what_models_of_a_family_are_saved_with_is_their_own(name, tmp_path):
    """The control: nothing is said of any of them."""
    model = tiny_model(name)
    folder = save(name, tmp_path, model)
    need_own_readers(name, str(folder), None, AutoProcessor.from_pretrained(folder), model)
