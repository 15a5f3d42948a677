"""What outsiders found: other pictures in an example, estimators' own checks, what results tell they are of."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.cli.commands.heatmap import _read
from lvlm_interp.cli.options import need_apart
from lvlm_interp.counterfactuals.pictures import black_box
from lvlm_interp.errors import ImageError, InputError, LvlmInterpError, MisfitError, OutputError
from lvlm_interp.inputs.media import open_image, open_video
from lvlm_interp.inputs.replaced import need_ids
from lvlm_interp.probes.estimators import PointProbe, Probe
from lvlm_interp.reference import make_scene
from lvlm_interp.report.export import figure_kind
from lvlm_interp.results import Result
from lvlm_interp.shown import printable
from tests.families import tiny_example, tiny_model
from tests.made import made
from tests.tiny import tiny_inputs, tiny_llava


def a_map():
    """Of a picture of 8 × 8 patches."""
    return made().patches


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


def opened(tmp_path_factory):
    from tests.saved import save

    return li.load(str(save("llava", tmp_path_factory.mktemp("llava"))))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A tiny model with a processor."""
    return opened(tmp_path_factory)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


# --- other pictures in an example -------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", ["blur", "crop", "blank"])
def test_another_picture_is_the_example_s_own_from_then_on(seeing, picture, without):
    new = picture.rotate(180)
    changed = seeing.with_pictures(seeing.prepare("what?", picture, answer="cat"), [new])
    prepared = seeing.prepare("what?", new, answer="cat")
    one, other = (li.contrast(seeing, y, without=without) for y in (changed, prepared))
    assert torch.equal(one.without_logit, other.without_logit)
    assert changed.images[0].picture.tobytes() == prepared.images[0].picture.tobytes()


@pytest.mark.parametrize("mode", ["I;16", "L", "RGBA"])
def test_another_picture_is_opened_as_any(seeing, picture, mode):
    grey = np.asarray(picture.convert("L"))
    given = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    changed = seeing.with_pictures(seeing.prepare("what?", picture), [given])
    prepared = seeing.prepare("what?", given)
    assert torch.equal(changed.model_inputs["pixel_values"], prepared.model_inputs["pixel_values"])


def test_a_picture_of_another_size_is_refused(seeing, picture):
    with pytest.raises(ImageError, match="40 × 60 pixels, and takes the place of one of 60 × 40"):
        seeing.with_pictures(seeing.prepare("what?", picture), [picture.transpose(Image.Transpose.ROTATE_90)])


def test_of_other_pixels_nobody_knows_the_picture(seeing, picture):
    x = seeing.prepare("what?", picture, answer="cat")
    changed = x.with_model_inputs(pixel_values=-x.model_inputs["pixel_values"])
    assert changed.images[0].picture is None and x.images[0].picture is not None
    with pytest.raises(ImageError, match="made from processed pixels"):
        li.contrast(seeing, changed, without="blur")


@pytest.mark.parametrize(
    ("box", "black"),
    [
        ((4.95, 4.95, 9.9, 9.9), range(5, 10)),
        ((0.9, 0.9, 2.1, 2.1), range(1, 2)),
        ((0.4, 0.4, 1.6, 1.6), range(2)),
        ((0.6, 0.6, 2.4, 2.4), range(1, 2)),
        ((2, 2, 5, 5), range(2, 5)),
    ],
)
def test_pixels_whose_middle_lies_in_a_box_become_black(seeing, box, black):
    white = Image.new("RGB", (20, 20), "white")
    x = seeing.prepare("what?", white, answer="cat")
    found = black_box(box).change(seeing, x, torch.Generator()).images[0].picture
    dark = np.asarray(found)[..., 0] == 0
    assert dark.any(0).nonzero()[0].tolist() == dark.any(1).nonzero()[0].tolist() == list(black)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.with_model_inputs(input_ids=x.input_ids + 1), "other tokens are another example"),
        (lambda x: x.with_model_inputs(attention_mask=torch.zeros_like(x.input_ids)), "attention_mask is 0 at"),
        (lambda x: x.with_answer([5.7], ["a"], "a"), "token ids are whole numbers|ids=…"),
        (lambda x: x.with_answer([True], ["a"], "a"), "token ids are whole numbers|ids=…"),
        (lambda x: x.with_noise(2.0, torch.Generator()), "from 0 to 1; got 2.0"),
        (lambda x: x.with_noise(float("nan"), torch.Generator()), "from 0 to 1; got nan"),
    ],
)
def test_what_cannot_take_the_place_of_inputs(x, change, said):
    with pytest.raises(InputError, match=said):
        change(dataclasses.replace(x, tokens=x.tokens or tuple("t" * x.length)))


@pytest.mark.parametrize("ids", ["ab", [-1], [2**40], [1.5], None, 3])
def test_what_is_no_id_is_not_decoded(ids):
    with pytest.raises(InputError, match="token ids are whole numbers"):
        need_ids(ids)


def test_ids_that_no_tokenizer_has_are_not_decoded(seeing):
    for ids in ([-1], [2**40]):
        with pytest.raises(InputError, match="token ids are whole numbers"):
            seeing.decode(ids)


FRAMES = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "video",
    [
        np.ma.masked_less(FRAMES, 1),
        [np.ma.masked_less(FRAMES[0], 1)],
        torch.zeros(2, 4, 4, 3, dtype=torch.bfloat16),
        torch.zeros(2, 4, 4, 3, requires_grad=True),
        torch.zeros(2, 4, 4, 3, dtype=torch.complex64).conj(),
        [[[[1], [2, 3]]]],
    ],
)
def test_what_is_no_frame_is_refused(video):
    with pytest.raises(ImageError, match="a frame"):
        open_video(video)


def test_frames_as_they_are():
    assert [frame.size for frame in open_video(torch.zeros(2, 4, 6, 3, dtype=torch.uint8))] == [(6, 4)] * 2


# --- estimators -------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(30, 3))
Y = np.array([0, 1] * 15)
HIDDEN = np.zeros((30, 3), bool)
HIDDEN[0, 0] = True


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (lambda: Probe().fit(np.ma.array(X, mask=HIDDEN), Y), "are masked"),
        (lambda: Probe().fit(X, np.ma.array(Y, mask=HIDDEN[:, 0])), "are masked"),
        (lambda: PointProbe().fit(X, np.ma.array(X[:, 0], mask=HIDDEN[:, 0])), "are masked"),
        (lambda: Probe().set_params(standardize="no").fit(X, Y), "True or False"),
        (lambda: Probe(tolerance=10).fit(X, Y), "between 0 and 1"),
        (lambda: Probe().set_params(tolerance=None).fit(X, Y), "between 0 and 1"),
        (lambda: PointProbe(tolerance=True).fit(X, X[:, 0]), "between 0 and 1"),
        (lambda: Probe().set_params(l2=[1.0, 0.1]).fit(X, Y), "has one l2"),
        (lambda: Probe().fit(X * 1e160, Y), "in another unit"),
        (lambda: Probe().fit(X * 1e-200, Y), "in another unit"),
        (lambda: PointProbe().fit(X, X[:, 0] * 1e300), "in another unit"),
    ],
)
def test_estimators_refuse_what_fits_refuse(fit, said):
    with pytest.raises(InputError, match=said):
        fit()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_estimators_take_tensors(dtype):
    features = torch.tensor(X).to(dtype)
    plain = Probe().fit(features.double().numpy(), Y).coef_
    assert np.allclose(Probe().fit(features.clone().requires_grad_(), Y).coef_, plain, atol=1e-4)


# --- what results tell they are of ------------------------------------------------------------------------------------


def test_boxes_are_told():
    one, other = (li.located(a_map(), box) for box in ((0, 0, 30, 20), (30, 0, 60, 20)))
    assert one.provenance != other.provenance and one.provenance.method == "located"


def test_regions_maps_and_groups_are_told(vlm, x):
    def measured(found, **asked):
        return li.faithfulness(vlm, x, found, target=0, substrates="tokens", orders=2, sets=4, **asked)

    hidden, looked = li.attribute(vlm, x, target=0), li.attribute(vlm, x, "attention", target=0)
    rows, columns = torch.tensor([[1, 1], [0, 0]]), torch.tensor([[1, 0], [1, 0]])
    first = measured(hidden)
    assert measured(hidden, regions=rows).provenance != measured(hidden, regions=columns).provenance
    assert first.provenance != measured(looked).provenance and first.provenance == measured(hidden).provenance
    several = [first] * 4
    one, other = (li.faithfulness_over(several, groups, samples=2) for groups in ([0, 0, 1, 1], [0, 1, 1, 1]))
    assert one.provenance != other.provenance


def test_features_labels_and_groups_of_a_fit_are_told():
    features, quick = torch.tensor(X)[:, None], {"folds": 2, "permutations": 0, "bootstrap": 0, "l2": 1.0}

    def of(values=features, labels=Y, groups=None):
        return li.fit_probes(values, labels.tolist(), groups=groups, **quick).provenance

    groups = [n // 2 for n in range(30)]
    assert of() == of() and of() != of(features + torch.arange(3)) and of() != of(labels=1 - Y)
    assert of(groups=groups) != of(groups=[*groups[:26], 14, 14, 13, 13])


def test_shuffled_and_put_back_weights_are_those_that_were_captured(vlm, x, tmp_path):
    found = vlm.capture(x, "blocks.*.hook_resid_post")
    li.sanity(vlm, x, "attention", blocks=[1])
    assert found.save(tmp_path / "c.safetensors").exists()
    with torch.no_grad():
        vlm.blocks[0].self_attn.q_proj.weight.mul_(1.0)  # written by the user: nobody knows what it was
    again = vlm.capture(x, "blocks.*.hook_resid_post")
    with torch.no_grad():
        vlm.blocks[0].self_attn.q_proj.weight.mul_(2.0)
    with pytest.raises(LvlmInterpError):
        again.save(tmp_path / "d.safetensors")
    with torch.no_grad():
        vlm.blocks[0].self_attn.q_proj.weight.mul_(0.5)


def test_a_result_without_tensors_is_saved_whatever_the_default_device(tmp_path):
    found = li.located(a_map(), (0, 0, 30, 20))
    with torch.device("meta"):
        path = found.save(tmp_path / "l.safetensors")
    assert Result.load(path).token


def test_a_header_that_nobody_could_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("lvlm_interp.results.LONGEST", 100)
    with pytest.raises(OutputError, match="of fewer examples each"):
        li.located(a_map(), (0, 0, 30, 20)).save(tmp_path / "l.safetensors")
    assert not [*tmp_path.iterdir()]


def test_torch_s_default_dtype_is_named(monkeypatch):
    vlm = li.wrap(tiny_model("glm4v"))
    x = tiny_example(vlm, "glm4v")
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(MisfitError, match="default dtype is float64"):
            li.score(vlm, x, x.everything)
    finally:
        torch.set_default_dtype(torch.float32)


def test_everything_is_seen_by_default():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    assert torch.equal(li.score(vlm, x).logprob, li.score(vlm, x, x.everything[None]).logprob)


def test_pieces_are_checked_whether_or_not_a_target_has_some():
    vlm = li.wrap(tiny_llava())
    with pytest.raises(InputError, match=r"pieces.* 'max'.* 'first'.*; got 'x'|got 'x'"):
        li.lens(vlm, tiny_inputs(vlm), pieces="x")


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (np.full((6, 8, 3), 1.0001), r"got 1.0001 to 1.0001: clip or scale"),
        (np.full((6, 8, 3), 200.0), "divide by 255"),
        ({"bytes": None, "path": None}, r"this one has \['bytes', 'path'\], and no picture there"),
    ],
)
def test_what_is_wrong_with_a_picture_is_told(picture, told):
    with pytest.raises(ImageError, match=told):
        open_image(picture)


def test_no_alternative_is_told_as_such(reference, purple_banana):
    with pytest.raises(InputError, match="holds no alternative"):
        li.credit(reference, purple_banana, against=[])


@pytest.mark.parametrize("name", ["a.eps", "a.PS"])
def test_postscript_would_hide_the_picture(name):
    with pytest.raises(OutputError, match=r"no transparency.*try \.pdf"):
        figure_kind(name)


@pytest.mark.parametrize("kind", [["image"], {}])
def test_a_part_of_no_kind_is_told(reference, kind):
    with pytest.raises(InputError, match="has the type"):
        reference.prepare_chat([{"role": "user", "content": [{"type": kind, "text": "What?"}]}])


def test_edited_heads_are_not_told_by_source():
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    with vlm.visiting({"blocks.1.attn.hook_z": lambda z: z * 2}), pytest.raises(InputError, match=r"hook_z' is edited"):
        li.direct(vlm, x)
    with vlm.visiting({"blocks.1.attn.hook_v": lambda v: v * 2}):
        li.direct(vlm, x)


# --- texts, tables and commands ---------------------------------------------------------------------------------------


def test_marks_of_direction_are_spelled_out():
    assert printable("\u200f10 - 7\u061c\u200e") == "\\u200f10 - 7\\u061c\\u200e"


@pytest.mark.parametrize("number", ["0e99999999999999999999", "1e-99999999999999999999999"])
def test_exponents_beyond_decimals_stay_text(tmp_path, number):
    from lvlm_interp.tables import read_examples

    make_scene(0).image.save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"image,question,label\na.png,what?,{number}\na.png,what?,2\n")
    assert list(read_examples(tmp_path / "t.csv")["label"]) == [number, "2"]


@pytest.mark.parametrize("address", ["http://[x/y.png", "//[tmp/p.png", "//\u2100/p.png", "file://[x/p.png"])
def test_addresses_that_are_none(address, tmp_path):
    (out := tmp_path / "out.png").touch()
    need_apart([out], [address])  # no error of Python's; what cannot be read is told when it is opened
    with pytest.raises(OutputError, match="a file that this command reads"):
        need_apart([out], [address, str(out)])


@pytest.mark.parametrize(
    "address", ["http://[x/y.png", "//[tmp/p.png", "file://[x/p.png", "ftp://x/y.png", "s3://b/k.png", "file:/x.png"]
)
def test_pictures_at_addresses_that_are_not_read(address):
    with pytest.raises(ImageError, match=r"not read|no image|cannot be"):
        open_image(address)


@pytest.mark.parametrize("value", ["{[20,21]}", "{[1]:2}", "{{}}"])
def test_values_that_python_cannot_make_are_texts(value):
    assert _read(value) == value


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("diagnose", "--out", "{}", "--frame", "{}/words.csv"), "one place"),
        (("heatmap", "--out", "{}/h.json", "--frame", "{}/h.json", "--force"), "one place"),
        (("faithfulness", "--seed", "18446744073709551616"), "64 bits"),
    ],
)
def test_two_outputs_in_one_place_are_refused_first(run, tmp_path, picture, monkeypatch, command, said):
    monkeypatch.setitem(vars(li), "load", lambda *args, **options: pytest.fail("the model was opened"))
    picture.save(tmp_path / "p.png")
    out = tmp_path / "r"
    out.mkdir()
    asked = [one.format(out) for one in command]
    status, _, complaint = run(*asked, "--image", tmp_path / "p.png", "--question", "what?")
    assert status and said in complaint
    assert not [*out.iterdir()]
