"""Videos: their tokens are known by role, frame and box; what is hidden of them is hidden."""

import inspect

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import lvlm_interp as li
from lvlm_interp.counterfactuals import black_box, swap
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.inputs.media import open_video
from lvlm_interp.opening.conformance import check
from tests.families import tiny_example, tiny_model
from tests.families.shared.clips import GRID
from tests.families.shared.tiny import ANSWER, BEGIN, END, IMAGE, QUESTION, VIDEO
from tests.saved import processor, save
from tests.videos import CLIPS, PICTURES, READERS, clip_example, without_torchvision

SIZE, FPS = (101, 67), 2.0
TORCHVISION = transformers.utils.is_torchvision_available()


def noise(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in drawn]


def oracle(vlm, x, visible):
    """The plain model, a 2-D mask over what is hidden, positions pinned as they are with everything visible."""
    given = {**x.model_inputs, "attention_mask": visible[None].long()}
    rope = getattr(vlm.model.base_model, "get_rope_index", None)
    given["position_ids"] = torch.arange(x.length)[None]
    if rope is not None:
        names = inspect.signature(rope).parameters
        given["position_ids"] = rope(**{k: v for k, v in x.model_inputs.items() if k in names})[0]
    with torch.no_grad():
        return vlm.model(**given).logits[0, x.answer_positions - 1]


# --- model inputs that are processed already --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CLIPS)
def family(request):
    return request.param, li.wrap(tiny_model(request.param))


def test_tokens_of_a_video_have_a_role_and_frames(family):
    name, vlm = family
    x = clip_example(vlm, name)
    token = IMAGE if CLIPS[name].as_images else VIDEO
    assert x.where("image").tolist() == (x.input_ids[0] == token).tolist()
    (view,) = x.images
    assert view.positions.tolist() == x.where("image").nonzero().flatten().tolist() and view.patches is None
    if CLIPS[name].as_images:  # nothing in the tensors says that these are frames
        assert view.frames is None and view.starts == ()
        return
    assert view.frames is not None and len(view.frames) == len(view.positions)
    assert view.starts == ((0, 1, 2) if name == "llava_onevision" else (0, 2)) and view.has_grid
    pixels = {k: v for k, v in x.model_inputs.items() if "grid" in k or "pixel" in k}
    still = clip_example(vlm, name, picture=True)
    with pytest.raises(InputError, match=r"0 videos but \d+ video tokens"):
        vlm.inputs(still.input_ids, **{k: v for k, v in still.model_inputs.items() if k in PICTURES[name][0]})
    with pytest.raises(InputError, match="1 images but 0 image tokens"):
        vlm.inputs(torch.tensor([[1, 5]]), **pixels)
    with pytest.raises(InputError, match="video tokens but no pixels"):
        vlm.inputs(x.input_ids)


@pytest.mark.parametrize("picture", [False, True])
def test_scores_are_those_of_transformers(family, picture):
    name, vlm = family
    if picture and name not in PICTURES:
        pytest.skip("frames are pictures here")
    x = clip_example(vlm, name, picture=picture)
    frame = x.everything
    frame[x.images[-1].positions[: len(x.images[-1].positions) // 2]] = False
    visible = torch.stack([x.everything, x.hidden("image"), x.hidden("question"), frame])
    found = li.score(vlm, x, visible).logits()
    expected = torch.stack([oracle(vlm, x, row) for row in visible])
    assert (found - expected).abs().max() < 2e-5
    assert (expected[0] - expected[1]).abs().max() > 0.1 < (expected[0] - expected[3]).abs().max()
    labels = x.answer_ids[:, None]
    delta = (expected[0] - expected[1]).gather(-1, labels)[:, 0]
    assert torch.allclose(li.contrast(vlm, x).delta, delta, atol=2e-5)
    split = li.credit(vlm, x)
    assert split.roles == ("question", "image") and torch.allclose(split.prior + split.credits.sum(1), split.total)
    found = check(vlm, x)
    assert found.ok, found.to_frame().to_string()


def test_a_picture_stands_before_its_video(family):
    name, vlm = family
    if name not in PICTURES:
        pytest.skip("frames are pictures here")
    x = clip_example(vlm, name, picture=True)
    still, moving = x.images
    for view, token in ((still, IMAGE), (moving, VIDEO)):
        assert view.positions.tolist() == (x.input_ids[0] == token).nonzero().flatten().tolist()
    assert still.frames is None and still.has_grid and moving.starts == clip_example(vlm, name).images[0].starts


def test_other_frames_behind_the_mask_change_nothing(family):
    """Of the whole video, and of its last frame: towers look at frames, or pairs of frames, one by one."""
    name, vlm = family
    x = clip_example(vlm, name)
    (view,), (pixels,) = x.images, x.pixels
    times = len(view.starts) or 3
    changed = x.pixels[pixels].clone()
    rows = changed.flatten(0, 1) if changed.ndim == 5 else changed  # frames, or patches, in their order
    rows[-(len(rows) // times) :] += 1.0
    y = x.with_model_inputs(**{pixels: changed})
    of_last = [frame == view.starts[-1] for frame in view.frames] if view.frames else [i > 7 for i in range(12)]
    last = x.everything
    last[view.positions[torch.tensor(of_last)]] = False
    first = x.everything
    first[view.positions[~torch.tensor(of_last)]] = False
    for visible, same in ((x.hidden("image"), True), (last, True), (x.everything, False), (first, False)):
        here, there = (li.score(vlm, one, visible[None]).logits() for one in (x, y))
        assert torch.equal(here, there) if same else (here - there).abs().max() > 0.01


def test_batches_of_videos_and_pictures_with_videos(family):
    name, vlm = family
    if name not in PICTURES:
        pytest.skip("frames are pictures here")
    x, y = clip_example(vlm, name, seed=1, picture=True), clip_example(vlm, name, seed=2, picture=True)
    logits = vlm.run(vlm.batch([x, y]))
    assert torch.allclose(logits[0, -3:], vlm.run(x)[0, -3:], atol=2e-5)
    assert torch.allclose(logits[1, -3:], vlm.run(y)[0, -3:], atol=2e-5)


@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl", "smolvlm", "instructblip"])
def test_models_that_take_no_video(name):
    vlm = li.wrap(tiny_model(name))
    x = tiny_example(vlm, name)
    with pytest.raises(InputError, match=f"models of type '{name}' take no pixel_values_videos"):
        vlm.inputs(x.input_ids, **x.pixels, pixel_values_videos=torch.zeros(1, 2, 3, 28, 28))


OTHERS = {  # pixels, and the tokens of the video
    "glm4v": (GRID, (154, BEGIN, *[IMAGE] * 6, END, 45, BEGIN, *[IMAGE] * 6, END, 155)),
    "exaone4_5": (GRID, (VIDEO,) * 12),
    "cosmos3_omni": (GRID, (BEGIN, *[VIDEO] * 6, END, 45, BEGIN, *[VIDEO] * 6, END)),
    "llava_next_video": ({"pixel_values_videos": (1, 3, 3, 28, 28)}, (VIDEO,) * 3),
    "video_llama_3": (
        {**GRID, "pixel_values_videos": (48, 588), "video_merge_sizes": torch.tensor([2])},
        (VIDEO,) * 12,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_videos_without_a_map_are_hidden_too(name):
    """Families whose frames nobody has mapped: roles and checks hold, and no box or frame is made up."""
    (pixels, tokens), vlm = OTHERS[name], li.wrap(tiny_model(name))
    generator = torch.Generator().manual_seed(0)
    given = {k: v if isinstance(v, torch.Tensor) else torch.randn(v, generator=generator) for k, v in pixels.items()}
    ids = torch.tensor([[1, *tokens, *QUESTION, *ANSWER]])
    if name in ("glm4v", "cosmos3_omni"):
        given["mm_token_type_ids"] = 2 * ((ids == IMAGE) | (ids == VIDEO)).long()
    x = vlm.inputs(ids, answer_start=1 + len(tokens) + len(QUESTION), **given)
    (view,) = x.images
    assert view.positions.tolist() == x.where("image").nonzero().flatten().tolist()
    assert len(view.positions) == sum(token in (IMAGE, VIDEO) for token in tokens)
    assert (view.patches, view.frames, view.cells) == (None, None, None)
    found = check(vlm, x)
    assert found.ok, found.to_frame().to_string()
    with pytest.raises(ImageError, match="not known for this model"):
        li.attribute(vlm, x)


def test_videos_of_unknown_share_are_not_guessed_at():
    """Without a row in the table, two videos side by side could be cut anywhere; one alone has all tokens."""
    vlm = li.wrap(tiny_model("exaone4_5"))
    grids, patches = torch.tensor([[2, 4, 6], [1, 4, 6]]), torch.zeros(72, 3 * 2 * 14 * 14)
    one = vlm.inputs(torch.tensor([[1, *[VIDEO] * 12, 5]]), video_grid_thw=grids[:1], pixel_values_videos=patches[:48])
    assert len(one.images[0].positions) == 12 and one.images[0].frames is None
    two = {"video_grid_thw": grids, "pixel_values_videos": patches}
    apart = vlm.inputs(torch.tensor([[1, *[VIDEO] * 12, 4, *[VIDEO] * 6, 5]]), **two)
    assert [len(view.positions) for view in apart.images] == [12, 6]
    with pytest.raises(InputError, match="18 image tokens do not divide among 2 images"):
        vlm.inputs(torch.tensor([[1, *[VIDEO] * 18, 5]]), **two)


# --- processors -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[(name, real) for name in READERS for real in (False, True)], ids=lambda p: f"{p[0]}, {p[1]}")
def opened(request, monkeypatch, tmp_path):
    """A family with its own processor: its video processor a stand-in, or (with torchvision) the real one, saved."""
    name, real = request.param
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:  # a package that writes numbers as words
        monkeypatch.setattr(processing_smolvlm, "num2words", str)
    if real and not TORCHVISION:
        pytest.skip("transformers makes its video processors with torchvision only")
    return name, li.load(save(name, tmp_path)) if real else li.wrap(tiny_model(name), without_torchvision(name))


def said(x, role):
    return "".join(token for token, r in zip(x.tokens, x.roles, strict=True) if r == role)


@pytest.mark.filterwarnings("ignore:the example has")  # five frames in a model of 256 positions
def test_prepare_with_a_video(opened):
    name, vlm = opened
    frames = noise(5)
    x = vlm.prepare("What?", video=frames, fps=FPS, context="a <video> b", system="Be brief.", answer="A cat.")
    assert (said(x, "system"), said(x, "context"), said(x, "question")) == ("Be brief.", "a <video> b", "What?")
    assert said(x, "answer").strip() == "A cat." and "<video>" not in said(x, "template")
    if name == "qwen3_vl":  # the time of a pair of frames is the mean of theirs, in seconds
        assert all(f"<{time} seconds>" in said(x, "template") for time in (0.2, 1.2, 2.0))
    (view,) = x.images
    assert [view.picture, *view.clip] == [view.clip[0], *frames]
    assert view.starts == ((0, 2, 4) if "qwen" in name else (0, 1, 2, 3, 4))
    assert view.patches is not None and view.grid is not None and len(view.patches) == len(view.frames)
    for start in view.starts:
        boxes = [view.patches[i] for i in view.cells_of(start).flatten().tolist()]
        assert boxes == [view.patches[i] for i in view.cells.flatten().tolist()]
        assert boxes[0][:2] == (0, 0) and boxes[-1][2:] == pytest.approx(SIZE)
        assert {view.frames[i] for i in view.cells_of(start).flatten().tolist()} == {start}
    found = check(vlm, x)
    assert found.ok, found.to_frame().to_string()
    assert isinstance(vlm.generate(x, 3), str) and li.credit(vlm, x).roles[-1] == "image"


def test_a_picture_and_a_video(opened):
    name, vlm = opened
    picture, frames = noise(1, 7, (90, 130))[0], noise(4)
    if name == "smolvlm":
        with pytest.raises(InputError, match="takes pictures or a video, not both"):
            vlm.prepare("What?", picture, video=frames)
        return
    x = vlm.prepare("What?", picture, video=np.stack([np.asarray(f) for f in frames]), answer="A cat.")
    still, moving = x.images
    assert (still.frames, still.clip, still.picture) == (None, (), picture) and still.patches is not None
    assert len(moving.clip) == 4 and moving.patches is not None and moving.positions[0] > still.positions[-1]
    both = torch.cat([still.positions, moving.positions])
    assert both.tolist() == x.where("image").nonzero().flatten().tolist()
    found = check(vlm, x)
    assert found.ok, found.to_frame().to_string()
    parts = [
        {"type": "video", "video": frames, "fps": FPS},
        {"type": "text", "text": "Which?"},
        {"type": "image", "image": picture},
    ]
    content = [parts[0], parts[2], parts[1]]
    first, second = vlm.prepare_chat([{"role": "user", "content": content}], answer="A cat.").images
    assert first.frames is not None and second.frames is None
    assert torch.equal(first.positions.diff(), moving.positions.diff()) and second.grid == still.grid


def test_where_in_a_video(opened):
    """Without a frame, a place is hidden in all frames; with one, in that one only."""
    _, vlm = opened
    x = vlm.prepare("What?", video=noise(5), answer="A cat.")
    (view,) = x.images
    everywhere, last = li.attribute(vlm, x), li.attribute(vlm, x, frame=4)
    assert everywhere.values.shape[1:] == view.grid and everywhere.size == SIZE
    assert not torch.equal(everywhere.values, last.values)
    assert torch.equal(everywhere.boxes, last.boxes) and last.provenance.parameters["frame"] == 4
    seen = li.score(vlm, x, x.everything[None], "text").logodds[0]
    for found, starts in ((everywhere, view.starts), (last, view.starts[-1:])):
        hidden = x.everything
        for start in starts:
            hidden[view.positions[view.cells_of(start)[-1, -1]]] = False
        odds = li.score(vlm, x, hidden[None], "text").logodds[0]
        assert torch.allclose(found.values[:, -1, -1], seen - odds, atol=1e-4)
    for frame in (-1, 5):
        with pytest.raises(InputError, match=f"no frame {frame}: the video has 5"):
            li.attribute(vlm, x, frame=frame)


def test_other_frames_in_the_place_of_a_video(opened):
    _, vlm = opened
    frames, others = noise(3), noise(3, 1)
    x, y = (vlm.prepare("What?", video=some, answer="A cat.") for some in (frames, others))
    swapped = vlm.with_pictures(x, [others])
    assert all(torch.equal(swapped.model_inputs[k], y.model_inputs[k]) for k in y.model_inputs)
    assert not torch.equal(*(one.pixels[next(iter(x.pixels))] for one in (x, swapped)))
    for without in ("blank", "noise", "dropped", swap(others[0]), black_box((0, 0, 50, 50))):
        assert li.contrast(vlm, x, without=without).delta.abs().max() > 0


def test_a_processor_that_takes_no_video():
    vlm = li.wrap(tiny_model("llava"), processor("llava"))
    with pytest.raises(InputError, match="LlavaProcessor takes no video"):
        vlm.prepare("What?", video=noise(2))
    x = vlm.prepare("What?", noise(1)[0], answer="A cat.")
    with pytest.raises(InputError, match="frames can be chosen of a video"):
        li.attribute(vlm, x, frame=0)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_that_are_none():
    for video, message in (
        ("film.mp4", "not as a file"),
        ([], "no frames"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], r"frames of the sizes \[\(4, 4\), \(5, 4\)\]"),
        (np.zeros((2, 4, 4, 3)), r"bytes \(uint8\); got float64 \[4, 4, 3\]"),
        ([np.zeros((4, 4), np.uint8)], r"got uint8 \[4, 4\]"),
    ):
        with pytest.raises(ImageError, match=message):
            open_video(video)
    assert open_video(torch.zeros(2, 4, 6, 3, dtype=torch.uint8))[1].size == (6, 4)
