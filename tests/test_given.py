"""Arguments of the wrong kind: one error that names the argument, what it is and what it should be."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, LvlmInterpError, SiteError
from lvlm_interp.fields import fits
from lvlm_interp.given import explained
from lvlm_interp.report import figures
from tests.made import made
from tests.tiny import tiny_inputs, tiny_llava

Q = "What color is the banana?"
SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


MISTAKES = {
    # what is called, with the model and an example, and what is said of it
    "text for an example": (lambda vlm, x: li.contrast(vlm, Q), "an example: vlm.prepare"),
    "a name for a model": (lambda vlm, x: li.diagnose("reference", None, Q), "load"),
    "a name for a model, in contrast": (lambda vlm, x: li.contrast("reference", x), "load"),
    "swapped": (lambda vlm, x: li.contrast(x, vlm), "model"),
    "text for a lens": (lambda vlm, x: li.lens(vlm, Q), "an example"),
    "text for credit": (lambda vlm, x: li.credit(vlm, Q), "an example"),
    "text for a map": (lambda vlm, x: li.attribute(vlm, Q), "an example"),
    "text for direct": (lambda vlm, x: li.direct(vlm, Q), "an example"),
    "text for score": (lambda vlm, x: li.score(vlm, Q, x.everything[None]), "an example"),
    "text for check": (lambda vlm, x: li.check(vlm, Q), "an example"),
    "text to run": (lambda vlm, x: vlm.run(Q), "an example"),
    "text to capture": (lambda vlm, x: vlm.capture(Q, SITE), "an example"),
    "text to go on with": (lambda vlm, x: vlm.generate(Q), "an example"),
    "no tokens to make": (lambda vlm, x: vlm.generate(x, 0), "max_new_tokens is 1 or more"),
    "keep one text": (lambda vlm, x: li.credit(vlm, x, keep="question"), r"give \('question',\)"),
    "threshold nan": (lambda vlm, x: li.contrast(vlm, x, threshold=float("nan")), "number of nats"),
    "threshold below 0": (lambda vlm, x: li.contrast(vlm, x, threshold=-1.0), "number of nats"),
    "threshold as text": (
        lambda vlm, x: li.contrast(vlm, x, threshold="1"),
        r"threshold=….* takes float; got '1', a str",
    ),
    "which image": (lambda vlm, x: li.attribute(vlm, x, image="a"), r"image=….* takes int"),
    "layers": (lambda vlm, x: li.lens(vlm, x, "a"), r"layers=…"),
    "a layer between": (lambda vlm, x: li.lens(vlm, x, 1.5), r"layers=…"),
    "positions between": (lambda vlm, x: li.lens(vlm, x, positions=[1.5]), r"positions=…"),
    "target": (lambda vlm, x: li.lens(vlm, x, target=None), r"target=…"),
    "k": (lambda vlm, x: li.lens(vlm, x, k="5"), r"k=….* takes int"),
    "visible": (lambda vlm, x: li.score(vlm, x, "all"), r"visible=….* takes Tensor"),
    "site": (lambda vlm, x: vlm.capture(x, 5), r"sites=…"),
    "dtype": (lambda vlm, x: vlm.capture(x, SITE, dtype="fp16"), r"dtype=….* torch.float16"),
    "device to keep on": (lambda vlm, x: vlm.capture(x, SITE, device="banana"), "no device 'banana' here"),
    "inputs without a row": (lambda vlm, x: vlm.inputs(torch.tensor([1, 2])), r"\[1, T\]; got \[2\]"),
    "edit": (lambda vlm, x: vlm.capture(x, SITE, edits={SITE: 5}), r"edits=…"),
    "edits": (lambda vlm, x: vlm.capture(x, SITE, edits=[SITE]), r"edits=…"),
    "inputs": (lambda vlm, x: vlm.inputs([[1, 2]]), r"input_ids=….* takes Tensor"),
    "one of a batch": (lambda vlm, x: vlm.batch(x), r"examples=…"),
    "batch of texts": (lambda vlm, x: vlm.batch([Q]), r"examples=…"),
    "sites of features": (lambda vlm, x: li.collect_features(vlm, [x], "blocks.*"), r"sites=…"),
    "examples of a lens": (lambda vlm, x: li.fit_tuned_lens(vlm, [Q, Q]), r"examples=…"),
    "noise": (lambda vlm, x: li.counterfactuals.noise("a"), "noise"),
    "where to save": (lambda vlm, x: li.contrast(vlm, x).save(None), r"path=…"),
    "a model that is a name": (lambda vlm, x: li.wrap("reference"), "load"),
    "a model in memory": (lambda vlm, x: li.load(vlm.model), "wrap"),
    "dtype by a short name": (lambda vlm, x: li.load("reference", dtype="fp16"), "Did you mean 'float16'"),
    "dtype of whole numbers": (lambda vlm, x: li.load("reference", dtype=torch.int8), "with a point"),
    "device": (lambda vlm, x: li.load("reference", device="banana"), "no device 'banana' here; there are cpu"),
    "device that is not there": (lambda vlm, x: li.load("reference", device="cuda:99"), "no device 'cuda:99' here"),
    "no device": (lambda vlm, x: li.load("reference", device="meta"), "no numbers"),
    "a word of a map": (
        lambda vlm, x: figures.heatmap(made().patches, token="banana"),
        "no tokens read 'banana'",
    ),
    "a picture by its name": (
        lambda vlm, x: figures.heatmap(made().patches, picture="scene.png"),
        "no image file at 'scene.png'",
    ),
    "a long name": (lambda vlm, x: li.load("x" * 300), "no model is called"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_our_words(vlm, x, case):
    call, said = MISTAKES[case]
    with pytest.raises(LvlmInterpError, match=said):
        call(vlm, x)


def test_an_adapted_model_says_how_it_is_opened():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_llava(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(LvlmInterpError, match=r"get_base_model\(\)"):
        li.wrap(adapted)


def test_an_error_of_an_edit_is_the_edits_own(vlm, x):
    """Not one of image tokens that do not match, though it says so in torch's words."""

    def edit(value):
        raise RuntimeError("shape mismatch: these are not the same")

    with pytest.raises(RuntimeError, match="these are not the same") as raised:
        vlm.capture(x, SITE, edits={SITE: edit})
    assert not isinstance(raised.value, InputError) and SITE in raised.value.__notes__[0]


def test_errors_that_are_no_ones_argument_stay():
    @explained
    def broken(number: int, name: str = "") -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        broken(1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        broken(1, other=2)
    with pytest.raises(InputError, match=r"broken\(name=…\) takes str; got 5, an int"):
        broken(1, 5)
    with pytest.raises(SiteError):
        explained(raising)(SiteError("ours"))


def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("value", "hint", "is_so"),
    [
        (torch.tensor(1.0).numpy()[()], float, True),
        (torch.tensor([1]).numpy()[0], int, True),
        (torch.tensor([1, 2]).numpy(), list[int], True),
        ([1.5], list[int], False),
        ("ab", list[str], False),
        (iter([1.5]), list[int], True),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "__next__") else str(value),
)
def test_arguments_may_be_of_numpy(value, hint, is_so):
    assert fits(value, hint, strict=False) is is_so
