"""Heatmaps and what is measured of them, as outsiders broke them: what was silently wrong is right, or refused."""

import dataclasses
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.asked import asked_of
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.report import figures
from tests import saved
from tests.families import tiny_model
from tests.processors import TORCHVISION
from tests.swapping import made_test
from tests.tiny import tiny_llava

DRAW = np.random.default_rng(0)
PICTURES = [Image.fromarray((DRAW.random((28, 28, 3)) * 255).astype("uint8")) for _ in range(3)]
FEW = {"orders": 1, "sets": 3, "regions": 2}


def opened():
    return li.wrap(tiny_llava(), saved.processor("llava"))


@pytest.fixture(scope="module")
def vlm():
    return opened()


@pytest.fixture(scope="module")
def x(vlm):
    return vlm.prepare("a b", PICTURES[0], answer="cat dog")


@pytest.fixture(scope="module")
def several(vlm):
    return vlm.prepare("a b", PICTURES[:2], answer="cat")


# --- shuffled weights -------------------------------------------------------------------------------------------------


def test_others_wait_while_weights_are_shuffled():
    vlm = opened()
    x = vlm.prepare("a b", PICTURES[0], answer="cat dog")
    right, before, found = li.contrast(vlm, x).delta, vlm.fingerprint, []
    work = [threading.Thread(target=lambda: [li.sanity(vlm, x, "attention") for _ in range(3)]) for _ in range(2)]
    for thread in work:
        thread.start()
    while any(thread.is_alive() for thread in work):
        found.append(li.contrast(vlm, x).delta)
    assert found and all(torch.equal(one, right) for one in found)
    assert vlm.fingerprint == before and torch.equal(li.contrast(vlm, x).delta, right)


def test_weights_elsewhere_are_not_shuffled():
    accelerate = pytest.importorskip("accelerate")
    model = tiny_llava()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    vlm = li.wrap(model, saved.processor("llava"))
    with pytest.raises(ModelError, match="of block 0 is not in memory"):
        li.sanity(vlm, vlm.prepare("a b", PICTURES[0], answer="cat"))


def test_a_number_that_stands_for_many_is_not_shuffled():
    model = tiny_llava()
    model.model.language_model.layers[1].input_layernorm.weight = torch.nn.Parameter(torch.ones(1).expand(32))
    vlm = li.wrap(model, saved.processor("llava"))
    with pytest.raises(ModelError, match=r"input_layernorm.weight of block 1 is one number"):
        li.sanity(vlm, vlm.prepare("a b", PICTURES[0], answer="cat"))


def test_weights_of_inference_mode_are_not_shuffled():
    with torch.inference_mode():
        model = tiny_llava()
    vlm = li.wrap(model, saved.processor("llava"))
    with pytest.raises(ModelError, match=r"was made in torch\.inference_mode"):
        li.sanity(vlm, vlm.prepare("a b", PICTURES[0], answer="cat"))


def test_a_foil_is_told_by_its_first_part(vlm, x):
    found = li.sanity(vlm, x, "attention", foil="bat rat", target=1, unit="word", blocks=[1])
    own = li.attribute(vlm, x, "attention", target=1, unit="word")
    first = li.attribute(vlm, vlm.answered(x, "bat rat"), "attention", target=0, unit="word")
    expected = pd.Series(own.values.flatten()).corr(pd.Series(first.values.flatten()), "spearman")
    assert float(found.foil[0]) == pytest.approx(expected, abs=1e-6)
    named = li.sanity(vlm, x, "attention", foil="bat", target="dog", blocks=[1])
    assert named.tokens == ("dog",) and named.foil.isfinite().all()


@pytest.mark.parametrize("blocks", [np.arange(1, 4), [np.int64(1)], torch.tensor([2, 1])])
def test_blocks_of_any_numbers(vlm, x, blocks):
    found = li.sanity(vlm, x, "attention", blocks=blocks)
    assert found.blocks == tuple(int(one) for one in blocks) and type(found.blocks[0]) is int


@pytest.mark.parametrize("blocks", [[True], [1.0], ["1"], []])
def test_blocks_that_are_no_counts(vlm, x, blocks):
    with pytest.raises(InputError, match="blocks are counts from 1 to 3"):
        li.sanity(vlm, x, "attention", blocks=blocks)


# --- faithfulness -----------------------------------------------------------------------------------------------------


def test_every_substrate_is_compared_with_the_same(vlm, x):
    patches = li.attribute(vlm, x)
    found = li.faithfulness(vlm, x, patches, value="odds", substrates=("tokens", "black", "blur"), **FEW)
    whole = found.deletion[0, :, 0]
    assert float((whole - whole[0]).abs().max()) < 1e-4 and found.alternatives
    assert not li.faithfulness(vlm, x, patches, substrates="tokens", **FEW).alternatives


def test_a_map_of_another_image_is_refused(vlm, several):
    first, second = (li.attribute(vlm, several, image=image) for image in (0, 1))
    assert li.faithfulness(vlm, several, second, image=1, substrates="tokens", **FEW).maps == ("map", "centre")
    with pytest.raises(InputError, match=r"the map 'map' is of image 0, and image 1 was asked for"):
        li.faithfulness(vlm, several, first, image=1, substrates="tokens", **FEW)
    with pytest.raises(InputError, match=r"the map 'b' is of image 1"):
        li.faithfulness(vlm, several, {"a": first, "b": second}, substrates="tokens", **FEW)
    effects = li.interactions(vlm, several, ["a"], regions=2, image=0)
    assert len(effects.scored(first)) and effects.provenance.parameters["image"] == 0
    with pytest.raises(InputError, match="is of image 1"):
        effects.scored(second)


def test_two_pictures_have_two_names(vlm, x):
    found = li.faithfulness(vlm, x, li.attribute(vlm, x), substrates=PICTURES[1:], **FEW)
    assert found.substrates == ("picture", "picture 2") and len(found.to_frame().groupby("substrate")) == 2
    lines = [figures.faithfulness_curves(found, "insertion", name).lines[0].get_ydata() for name in found.substrates]
    assert not np.allclose(*lines)


@pytest.mark.parametrize("substrate", [np.asarray(PICTURES[1]), torch.from_numpy(np.array(PICTURES[1]))])
def test_an_array_is_a_picture(vlm, x, substrate):
    expected = li.attribute(vlm, x, substrate=PICTURES[1])
    assert torch.equal(li.attribute(vlm, x, substrate=substrate).values, expected.values)
    assert li.faithfulness(vlm, x, expected, substrates=substrate, **FEW).substrates == ("picture",)


def test_names_of_maps_are_texts(vlm, x):
    with pytest.raises(InputError, match=r"maps are named by texts.*got 1|maps=…"):
        li.faithfulness(vlm, x, {1: li.attribute(vlm, x)})


def test_a_map_of_words_is_asked_for_by_words(vlm):
    x = vlm.prepare("a b", PICTURES[0], answer="catdog")
    assert len(x.answer_tokens) > 1
    with pytest.raises(InputError, match=r"the map is of 'catdog'.*give unit= and target= as the map was asked for"):
        li.faithfulness(vlm, x, li.attribute(vlm, x, unit="word"))


@pytest.fixture(scope="module")
def six(vlm, x):
    patches = li.attribute(vlm, x)
    return [li.faithfulness(vlm, x, patches, substrates="tokens", seed=seed, **FEW) for seed in range(6)]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, pd.Series, list])
def test_groups_of_any_kind(six, kind):
    assert li.faithfulness_over(six, kind([1, 1, 2, 2, 3, 3])).groups == 3


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_groups_that_are_missing(six, missing):
    for groups in ([missing] * 6, [missing, *"abcde"]):
        with pytest.raises(InputError, match="groups are NaN or infinite, or missing"):
            li.faithfulness_over(six, groups)


# --- maps -------------------------------------------------------------------------------------------------------------

READING = ("attention", "relative_attention", "rollout", "localization_heads", "tam", "occlusion", "gradient")


@pytest.mark.parametrize("method", READING)
def test_nan_in_a_model_is_no_map(method):
    vlm = opened()
    with torch.no_grad():
        vlm.model.model.language_model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN for this example, first at 'blocks.2"):
        li.attribute(vlm, vlm.prepare("a b", PICTURES[0], answer="cat"), method)


@pytest.mark.parametrize("frame", [1.9, True, 0.5, "1"])
def test_a_frame_is_a_whole_number(vlm, x, frame):
    with pytest.raises(InputError, match=r"frame= is the number of a frame|frame=…"):
        li.attribute(vlm, x, frame=frame)


@pytest.mark.parametrize("method", ["attention", "direct", "grad_x_input", "integrated_gradients"])
@pytest.mark.parametrize("family", ["internvl", "idefics3", "llava_next"])
def test_a_token_that_shows_several_patches_counts_once(family, method):
    if family in saved.WITH_VIDEO and not TORCHVISION:
        pytest.skip("transformers makes processors that read videos too with torchvision only")
    vlm = li.wrap(tiny_model(family), saved.processor(family))
    picture = Image.fromarray((DRAW.random((70, 50, 3)) * 255).astype("uint8"))
    x = vlm.prepare("what is it", picture, answer="ab")
    more = {"steps": 64} if method == "integrated_gradients" else {}
    found = li.attribute(vlm, x, method, **more)
    least = 1e-3 if method == "integrated_gradients" else 1e-5
    shown = torch.zeros(x.length, dtype=torch.bool)
    for patch in asked_of(vlm, x).patches:
        shown |= patch
    whole = bool(shown[x.images[0].positions].all())
    if whole:  # else a row's end has what no patch has
        assert found.values.sum((1, 2)).tolist() == pytest.approx(found.image_total.tolist(), abs=5 * least, rel=least)
    elif method == "attention":
        assert (found.values.sum((1, 2)) <= found.image_total + 1e-6).all()


def test_maps_of_other_pictures_or_regions_have_no_difference(vlm, x):
    one, other = (li.attribute(vlm, x, substrate=picture) for picture in PICTURES[1:])
    with pytest.raises(InputError, match="their picture are not the same"):
        one - other
    with pytest.raises(InputError, match="their labels are not the same"):
        li.attribute(vlm, x, regions=2) - li.attribute(vlm, x, regions=1)
    assert li.attribute(vlm, x) - li.attribute(vlm, x, regions=np.arange(4).reshape(2, 2))


def test_a_grid_has_scales_by_row_or_by_map(vlm, x):
    for wrong in (2.0, "bad"):
        with pytest.raises(InputError, match=r"limit is 'row' or 'own'|limit=…"):
            figures.heatmap_grid({"a": li.attribute(vlm, x)}, PICTURES[0], limit=wrong)


def test_an_empty_foil(vlm, x):
    for call in (lambda: li.attribute(vlm, x, against=""), lambda: li.credit(vlm, x, unit="word", against=[""])):
        with pytest.raises(InputError, match="empty text"):
            call()


@pytest.mark.parametrize("target", [True, 1.0])
def test_targets_that_are_no_numbers(vlm, x, target):
    with pytest.raises(InputError, match=r"named by its number|target=…"):
        li.attribute(vlm, x, unit="word", target=target)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_what_was_missed_has_the_columns_of_a_miss():
    assert [*li.judged(made_test()).missed().columns][:2] == ["definition", "example"]


def test_a_token_is_not_held_against_itself(vlm, x):
    with pytest.raises(InputError, match="is the token that is taken apart itself"):
        li.direct(vlm, x, target="c", against="c")
    assert li.direct(vlm, x, against="c").logit[0] == 0  # only where the answer says the same


def test_probes_are_fitted_as_finely_within_autocast():
    features, labels = torch.randn(60, 1, 8, generator=torch.Generator().manual_seed(0)), [0, 1] * 30
    how = {"l2": 1.0, "permutations": 0, "bootstrap": 0}
    plain = li.fit_probes(features, labels, **how)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(li.fit_probes(features, labels, **how).values, plain.values)


def test_one_text_is_no_sites():
    with pytest.raises(InputError, match="got one text, 'ab'"):
        li.fit_probes(torch.randn(20, 2, 5), ["a", "b"] * 10, sites="ab")


def test_a_contrast_of_no_threshold_is_drawn(vlm, x):
    found = li.contrast(vlm, x)
    bare = dataclasses.replace(found, provenance=dataclasses.replace(found.provenance, parameters={}))
    assert len(figures.contrast_bars(bare).lines) < len(figures.contrast_bars(found).lines)


def test_labels_are_counted_first():
    with pytest.raises(InputError, match="24 examples but 1 labels"):
        li.fit_probes(torch.randn(24, 1, 4), ["a"])
    with pytest.raises(InputError, match="features are masked"):
        li.fit_probes(np.ma.masked_less(DRAW.random((24, 1, 4)), 0.5), ["a", "b"] * 12)
