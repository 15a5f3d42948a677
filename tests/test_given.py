"""Arguments of the wrong kind: one error that names the argument, what it is and what it should be."""

import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

import lvlm_interp as li
from lvlm_interp.attribution.shapley import dividends, shapley_weights, shares
from lvlm_interp.attribution.value import target_of
from lvlm_interp.counterfactuals import Counterfactual
from lvlm_interp.counterfactuals.contrast import cal_weights, token_classes
from lvlm_interp.errors import InputError, LvlmInterpError, SiteError
from lvlm_interp.fields import fits
from lvlm_interp.given import explained, is_explained, whole
from lvlm_interp.inputs.media import open_video
from lvlm_interp.inputs.words import Word, parts_of, split_words
from lvlm_interp.reference import exam, questions, scenes
from lvlm_interp.report import export, figures
from lvlm_interp.report.explorer import document
from lvlm_interp.tables import read_examples
from tests.made import made
from tests.probing import QUICK, labelled
from tests.tiny import tiny_inputs, tiny_llava
from tests.wrong import functions

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
    "a path for a table of variants": (lambda vlm, x: li.swap_test(vlm, "variants.csv"), r"table=….* takes DataFrame"),
    "a table for a swap test": (lambda vlm, x: li.judged(made().to_frame()), r"test=….* takes SwapTest"),
    "text for a map": (lambda vlm, x: li.attribute(vlm, Q), "an example"),
    "text for direct": (lambda vlm, x: li.direct(vlm, Q), "an example"),
    "text for score": (lambda vlm, x: li.score(vlm, Q, x.everything[None]), "an example"),
    "text for check": (lambda vlm, x: li.check(vlm, Q), "an example"),
    "text to run": (lambda vlm, x: vlm.run(Q), "an example"),
    "text to capture": (lambda vlm, x: vlm.capture(Q, SITE), "an example"),
    "text to go on with": (lambda vlm, x: vlm.generate(Q), "an example"),
    "no tokens to make": (lambda vlm, x: vlm.generate(x, 0), "max_new_tokens is 1 or more"),
    "half a token to make": (lambda vlm, x: vlm.generate(x, 2.5), "max_new_tokens"),
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
    "dtype": (lambda vlm, x: vlm.capture(x, SITE, dtype="fp16"), "Did you mean 'float16'"),
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
    "a misspelt option": (lambda vlm, x: li.load("reference", devise="cpu"), r"does not take \['devise'\]"),
    "no such user": (lambda vlm, x: li.load("~nouser/x"), "is not a model directory"),
    "no processor": (lambda vlm, x: li.wrap(vlm.model, "x"), "processor= is transformers"),
    "a reader of pictures": (lambda vlm, x: li.wrap(vlm.model, CLIPImageProcessor()), "processor= is transformers"),
    "a class": (lambda vlm, x: li.wrap(vlm.model, PreTrainedTokenizerFast), "processor= is transformers"),
    "no name": (lambda vlm, x: li.wrap(vlm.model, None, 3), "name= is a text|name=…"),
    "text to visit": (lambda vlm, x: vlm.visiting(SITE), r"visiting\(visits=…\)"),
    "a number to visit with": (lambda vlm, x: vlm.visiting({SITE: 3}), r"visiting\(visits=…\)"),
    "text for ids": (lambda vlm, x: vlm.token_strings("abc"), r"token_strings\(ids=…\)"),
    "no ids": (lambda vlm, x: vlm.text_of(None), r"ids=…"),
    "no pictures": (lambda vlm, x: vlm.with_pictures(x, None), r"pictures=…"),
    "fewer pictures": (lambda vlm, x: vlm.with_pictures(x, []), "has 1 pictures and videos; got 0"),
    "a picture by its name again": (lambda vlm, x: vlm.with_pictures(x, ["nope"]), "no image file at"),
    "an answer without ids": (lambda vlm, x: li.Answer("x", None), r"Answer\(ids=…\)"),
    "ids of another model": (lambda vlm, x: vlm.inputs(x.input_ids * 0 + 10**9), "holds 1000000000, and the tokens"),
    "ids below 0": (lambda vlm, x: vlm.inputs(x.input_ids * 0 - 1), "holds -1, and the tokens of this model are 0 to"),
    "ids with a point": (lambda vlm, x: vlm.inputs(x.input_ids * 1.0), "whole numbers"),
    "a mask of zeros": (
        lambda vlm, x: vlm.inputs(x.input_ids, attention_mask=x.input_ids * 0, pixel_values=x.pixels["pixel_values"]),
        "attention_mask is 0 everywhere",
    ),
    "a mapping of counterfactuals": (lambda vlm, x: li.contrast(vlm, x, {"a": 1}), "no counterfactual|without=…"),
    "a large seed": (lambda vlm, x: li.contrast(vlm, x, seed=2**70), "at most 64 bits"),
    "text for a seed": (lambda vlm, x: li.contrast(vlm, x, seed="a"), "seed"),
    "threshold without end": (lambda vlm, x: li.contrast(vlm, x, threshold=math.inf), "number of nats"),
    "a change that gives nothing": (
        lambda vlm, x: li.contrast(vlm, x, Counterfactual("own", lambda vlm, x, generator: None)),
        "'own' makes an example",
    ),
    "no such column": (lambda vlm, x: li.contrast(vlm, x, ["hidden"]).table("nope"), "no column 'nope'; it has"),
    "half a span": (lambda vlm, x: li.credit(vlm, x, unit=(0,)), r"a span|unit=…"),
    "a truth for a number": (lambda vlm, x: li.lens(vlm, x, k=True), r"k=….* takes int; got True"),
    "a layer twice": (lambda vlm, x: li.lens(vlm, x, [3, -1]), "layer 3 is asked for twice"),
    "no such patch token": (lambda vlm, x: made().patches.peak(99), "no token 99: the map has"),
    "no patch token": (lambda vlm, x: made().patches.peak(None), r"no token None|token=…"),
    "no such text in a map": (lambda vlm, x: made().patches.peak_box("Red"), "tokens read 'Red'"),
    "no words": (lambda vlm, x: made().patches.words([]), "they do not fit"),
    "text for words": (lambda vlm, x: made().patches.words("ab"), r"words=…"),
    "no such component": (lambda vlm, x: li.direct(vlm, x).components(99), "no token 99: the answer has 3"),
    "no such coalition": (lambda vlm, x: li.score(vlm, x, x.everything).logits(99), "no coalition 99: 1 were scored"),
    "text for a diagnosis": (lambda vlm, x: export.write("x", "out"), r"diagnoses=…"),
    "no diagnoses": (lambda vlm, x: export.write([], "out"), "no diagnosis to show"),
    "another result on a page": (lambda vlm, x: document.page(made().credit), r"diagnoses=…"),
    "a number for a folder": (lambda vlm, x: export.write(made(), 3), r"out_dir=…"),
    "a picture to save that is not there": (
        lambda vlm, x: export.save_heatmap(made().patches, "no.png", "out.png"),
        "no image file at 'no.png'",
    ),
    "one picture of two": (
        lambda vlm, x: figures.pair_maps(made().patches - made().patches, 0, [Image.new("RGB", (60, 40))]),
        "a list of two; got 1",
    ),
    "axes with depth": (
        lambda vlm, x: figures.heatmap(made().patches, ax=Figure().add_subplot(projection="3d")),
        "two straight sides.*got Axes3D",
    ),
    "limit nan": (lambda vlm, x: figures.heatmap(made().patches, limit=math.nan), "number of nats above 0"),
    "limit 0": (lambda vlm, x: figures.heatmap(made().patches, limit=0), "number of nats above 0"),
    "no such limit": (lambda vlm, x: figures.heatmap(made().patches, limit="all"), r"above 0|limit=…"),
    "fade": (lambda vlm, x: figures.heatmap(made().patches, fade=2), "fade is from 0"),
    "no table": (lambda vlm, x: read_examples(None), r"path=…"),
    "no video": (lambda vlm, x: open_video(3), r"video=…"),
    "scenes": (lambda vlm, x: scenes.make_scenes("a"), r"count=…"),
    "questions": (lambda vlm, x: questions.examples("object", 1, seed="a"), r"seed=…"),
    "a name to ask": (lambda vlm, x: list(exam.examined("reference", [])), r"vlm=…"),
    "weights of a list": (lambda vlm, x: cal_weights([1.0]), r"delta=…"),
    "weights of nothing": (lambda vlm, x: cal_weights(torch.zeros(0)), "got 0 tokens"),
    "an even window": (lambda vlm, x: cal_weights(torch.zeros(3), window=2), "odd number"),
    "classes of nan": (lambda vlm, x: token_classes(torch.tensor([math.nan])), "is NaN"),
    "classes below 0": (lambda vlm, x: token_classes(torch.tensor([0.0]), -1.0), "number of nats"),
    "shares of nan": (lambda vlm, x: shares({"a": math.nan}), "'a' is nan"),
    "players below 0": (lambda vlm, x: shapley_weights(-1), "0 to 20 players"),
    "values of no coalitions": (lambda vlm, x: dividends(torch.zeros(3)), "got 3 values"),
    "no text to cut": (lambda vlm, x: split_words(None), r"tokens=…"),
    "what cuts nothing": (lambda vlm, x: split_words(["a"], segmenter=3), r"segmenter=…"),
    "parts of a text": (lambda vlm, x: parts_of("abc", "word"), r"x=….* an example"),
    "bytes against": (lambda vlm, x: li.credit(vlm, x, against=b"a"), r"these are bytes|against=…"),
    "numbers against": (lambda vlm, x: li.credit(vlm, x, against=[3]), r"a list of texts; got 3|against=…"),
    "a word against nothing": (lambda vlm, x: li.credit(vlm, x, word=1), "give against="),
    "a word of a diagnosis": (lambda vlm, x: li.diagnose(vlm, Q, "no.png", word=9), "word=9 says .* give against="),
    "no such metric": (
        lambda vlm, x: figures.probe_layers({"a": li.fit_probes(*labelled(), **QUICK)}, "acc"),
        "no metric 'acc': 'a' has",
    ),
    "no players": (lambda vlm, x: li.credit(vlm, x, players={}), "players holds none"),
    "an empty list of players": (lambda vlm, x: li.credit(vlm, x, players=[]), "players holds none"),
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


def test_what_a_function_hands_on_is_told_as_its_own_argument(vlm, x):
    for call, said in (
        (lambda: li.credit(vlm, x, against="b", word="abc"), r"credit\(word=…\) takes int"),
        (lambda: li.credit(vlm, "what"), r"credit\(x=…\) takes an example"),
        (lambda: li.credit(vlm, x, unit=(True, 2)), "no span"),
    ):
        with pytest.raises(InputError, match=said):
            call()


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


def test_a_path_is_not_blamed_for_an_error_of_something_else():
    """It fits: what else went wrong is what is told."""

    @explained
    def stored(store: str | os.PathLike[str], number: float = 1.0) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        stored(Path("x"), 0.0)
    with pytest.raises(InputError, match=r"stored\(number=…\) takes float; got 'a', a str"):
        stored(Path("x"), "a")
    assert fits(Path("x"), os.PathLike[str], strict=False) and not fits(3, os.PathLike[str], strict=False)


def test_every_public_function_is_explained():
    """A new one that is not is found here: give it `@explained`, or its class `@explaining`."""
    assert [name for name, function in functions().items() if not is_explained(function)] == []


def test_truths_of_other_packages_are_truths():
    @explained
    def told(value: int, yes: bool = False) -> bool:
        return bool(yes)

    assert [told(1, yes) for yes in (torch.tensor(True), torch.tensor(True).numpy()[()], 1, None, 0)] == [1, 1, 1, 0, 0]
    for text in ("yes", b"yes", np.str_("False"), np.bytes_(b"no")):
        with pytest.raises(InputError, match=r"told\(yes=…\)"):
            told(1, text)


def test_wrong_arguments_are_told_of_every_public_function():
    """In a process whose calls nobody checks, as those of users."""
    done = subprocess.run([sys.executable, "-m", "tests.wrong"], capture_output=True, text=True, check=True)
    assert not done.stdout.strip(), done.stdout


@pytest.mark.parametrize("name", ["question", "answer", "context", "system"])
def test_half_a_character_is_named(reference, purple_banana, name):
    texts = {"question": Q, "answer": "Red.", name: "caf\ud800"}
    with pytest.raises(InputError, match=rf"{name}= holds half a character, '\\ud800', at 3"):
        reference.prepare(texts.pop("question"), purple_banana.images[0].picture, **texts)


def test_no_word_is_nameless():
    """Line breaks stand alone, and are read as such."""
    assert split_words(["a", "\n", "\n", "b"])[1:3] == (Word("\n", 1, 2), Word("\n", 2, 3))


def test_seconds_are_of_a_video(reference):
    with pytest.raises(InputError, match="fps= is of a video"):
        reference.prepare(Q, fps=-1)


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_whole_numbers_of_other_packages_are_numbers(kind):
    """Ids of tokens, numbers of words and seeds, as they are read from an array."""
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    lens, direct = inspect.unwrap(li.lens), inspect.unwrap(li.direct)
    assert torch.equal(lens(vlm, x, target=kind(5)).target_logprob, lens(vlm, x, target=[5]).target_logprob)
    assert torch.equal(direct(vlm, x, target=kind(5)).logit, direct(vlm, x, target=5).logit)
    assert whole(kind(3)) == 3 and type(whole(kind(3))) is int
    assert whole(True) is True and whole("3") == "3" and whole(2.0) == 2.0
    words = inspect.unwrap(target_of)(vlm, x, ["odds"], "token", ["<9>"], kind(0))
    assert words.search.given.keys() == {0}
    if kind is not torch.tensor:
        maps = [li.attribute(vlm, x, "rise", samples=8, seed=seed).values for seed in (kind(3), 3)]
        assert torch.equal(*maps)


def test_a_capture_s_provenance_is_kept(tmp_path):
    vlm = li.wrap(tiny_llava())
    found = vlm.capture(tiny_inputs(vlm), "blocks.0.hook_resid_post", dtype="bfloat16", device="cpu")
    assert li.load_result(found.save(tmp_path / "c.safetensors")).provenance == found.provenance


def test_targets_that_read_the_same():
    vlm = li.wrap(tiny_llava())
    with pytest.raises(InputError, match="read the same"):
        li.lens(vlm, tiny_inputs(vlm), target=[5, 5])
