"""Prompts are those that a model's own processor makes; what stands in them is labelled for what it is."""

import inspect
import string
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lvlm_interp as li
from lvlm_interp.errors import InputError, LvlmInterpWarning, VisibilityError
from lvlm_interp.families.shared.registry import FAMILIES
from lvlm_interp.inputs import chat
from lvlm_interp.inputs.prompt import Prompter
from lvlm_interp.model.limits import longest
from tests import tokenizers
from tests.families import tiny_example, tiny_model
from tests.families.fuyu import PAPER, cutting_fuyu
from tests.families.shared.saved import pil
from tests.families.shared.tiny import ANSWER, BEGIN, END, IMAGE, QUESTION
from tests.saved import SAVED, TEMPLATE, UNOPENED, processor, tokenizer
from tests.tiny import tiny_inputs, tiny_llava

ASKED = "What color is it?"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


# --- processors with a chat template ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SAVED if name not in UNOPENED])
def test_ids_and_pixels_are_the_processors_own(name):
    own = processor(name)
    theirs = own.apply_chat_template(
        chat.conversation(ASKED, [PICTURE], "Look.", "Be brief."),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    ours = Prompter(own, FAMILIES[name].prompt).encode(chat.conversation(ASKED, [PICTURE], "Look.", "Be brief."))
    assert ours.model_inputs.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours.model_inputs[key], value) if torch.is_tensor(value) else True


# --- processors without one, some of which write image tokens themselves ----------------------------------------------


WHOLE28 = {"size": {"height": 28, "width": 28}}


def bare():
    """A tokenizer that knows the image token, and does not say which it is."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, **named)


def blips(kind, **more):
    return getattr(transformers, kind)(pil("BlipImageProcessorPil", **WHOLE28), bare(), **more, num_query_tokens=4)


def paligemma():
    pixels = pil("SiglipImageProcessorPil", **WHOLE28)
    pixels.image_seq_length = 4
    return transformers.PaliGemmaProcessor(pixels, tokenizer())


def fuyu():
    """Its tokenizer writes a blank before every text, which its processor takes off before an image."""
    marks = {"<pad>": 0, "|ENDOFTEXT|": 2, "<s>": 1, "<unk>": 3, "|SPEAKER|": IMAGE, "|NEWLINE|": BEGIN, "<0x04>": END}
    known = {**{c: 4 + n for n, c in enumerate(string.printable[:95] + "\n▁")}, **marks}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.normalizer = normalizers.Prepend("▁")
    pieces = Regex(r"\|SPEAKER\||\|NEWLINE\||<0x04>|[\s\S]")
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(pieces, "isolated"), decoders.Fuse()
    named = {"bos_token": "<s>", "eos_token": "|ENDOFTEXT|", "unk_token": "<unk>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    own = transformers.FuyuProcessor(cutting_fuyu()(**{**PAPER, "patch_size": {"height": 14, "width": 14}}), fast)
    try:
        own(text=[ASKED], images=[PICTURE], return_tensors="pt")
    except TypeError as error:  # transformers 5.9 without torchvision
        pytest.skip(f"this transformers cannot cut a picture for Fuyu: {error}")
    return own


PLAIN = {
    "paligemma": (paligemma, "<image>" + ASKED),
    "blip-2": (lambda: blips("Blip2Processor"), ASKED),
    "instructblip": (lambda: blips("InstructBlipProcessor", qformer_tokenizer=bare()), ASKED),
    "fuyu": (fuyu, ASKED),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_prompt_without_a_template_is_the_processors_own(name):
    make, text = PLAIN[name]
    own = make()
    theirs = own(text=[text], images=[PICTURE], return_tensors="pt")
    vlm = li.wrap(tiny_model(name), own)
    x = vlm.prepare(ASKED, PICTURE)
    assert {*theirs.keys()} - {*x.model_inputs} <= {"labels"} and "labels" not in x.model_inputs
    for key, value in x.model_inputs.items():
        assert torch.equal(value, theirs[key]), key
    said = "".join(token for token, role in zip(x.tokens, x.roles, strict=True) if role == "question")
    assert said == ASKED and x.roles.count("image") == int((x.input_ids == IMAGE).sum()) > 0
    if name == "paligemma":
        assert "".join(x.tokens).endswith(f"{ASKED}\n") and not "".join(x.tokens).endswith("\n\n")
    y = vlm.prepare(ASKED, PICTURE, answer="A cat.")
    assert vlm.run(y).isfinite().all() and y.answer_tokens[-1] == "." and isinstance(vlm.generate(x, 2), str)


def test_what_a_processor_refuses_is_said():
    vlm = li.wrap(tiny_model("paligemma"), paligemma())
    with pytest.raises(InputError, match=r"PaliGemmaProcessor refused the prompt with 0 images: .*images"):
        vlm.prepare(ASKED)


# --- pictures are processed once --------------------------------------------------------------------------------------


def counting(own, calls):
    """The processor, whose image processor notes its calls."""
    kind = type(own.image_processor)

    class Counting(kind):
        def preprocess(self, *given, **told):
            calls.append(len(given))
            return super().preprocess(*given, **told)

    own.image_processor.__class__ = Counting
    return own


@pytest.mark.parametrize("name", ["llava_next", "gemma3", "paligemma", "instructblip", "fuyu"])
def test_pictures_are_processed_once_and_all_stays_the_same(name):
    calls = []
    make = PLAIN[name][0] if name in PLAIN else lambda: processor(name)
    vlm = li.wrap(tiny_model(name), counting(make(), calls))
    told = {} if name in PLAIN else {"context": "Look.", "system": "Be brief."}
    images = [PICTURE] if name in PLAIN else [PICTURE, PICTURE.rotate(90, expand=True)]
    x = vlm.prepare(ASKED, images, answer="A cat.", **told)
    assert len(calls) == 1
    own = vlm.processor.image_processor
    with mock.patch.object(Prompter, "remembering", lambda self: self):
        y = vlm.prepare(ASKED, images, answer="A cat.", **told)
    assert len(calls) >= 4  # the control
    assert (x.roles, x.texts, x.tokens, x.written) == (y.roles, y.texts, y.tokens, y.written)
    assert all(torch.equal(x.model_inputs[k], y.model_inputs[k]) for k in y.model_inputs)
    assert vlm.processor.image_processor is own
    pixels = [next(iter(vlm.prepare(ASKED, one).pixels.values())) for one in (PICTURE, PICTURE.rotate(180))]
    assert not torch.equal(*pixels)  # of another prompt, nothing is kept


# --- what a template writes before a reply ----------------------------------------------------------------------------

THINKING = TEMPLATE.replace(
    "{{ message['role'] }}: ",
    "{{ message['role'] }}: {% if message['role'] == 'assistant' %}<think></think>{% endif %}",
)


@pytest.fixture
def thinking():
    own = processor("llava")
    own.chat_template = THINKING.replace("MARKER", "<image>")
    return li.wrap(tiny_llava(), own)


def test_thoughts_that_a_template_writes_are_no_part_of_the_answer(thinking):
    x = thinking.prepare(ASKED, PICTURE, answer="A cat.")
    assert "".join(x.answer_tokens) == "A cat." and x.answer == "A cat."
    prompt = "".join(token for token, role in zip(x.tokens, x.roles, strict=True) if role == "template")
    assert prompt.endswith("assistant: <think></think>")
    plain = li.wrap(tiny_llava(), processor("llava")).prepare(ASKED, PICTURE, answer="A cat.")
    assert x.answer_start == plain.answer_start + len("<think></think>")  # the control: it has none
    assert x.length == len(x.roles) == x.model_inputs["attention_mask"].shape[1] and thinking.run(x).isfinite().all()


def test_a_template_that_writes_something_else_each_time_is_refused():
    own = processor("llava")
    clock = {"fast": "{{ strftime_now('%f') }}", "slow": "{{ strftime_now('%Y') }}"}
    for pace, written in clock.items():
        own.chat_template = written + TEMPLATE.replace("MARKER", "<image>")
        vlm = li.wrap(tiny_llava(), own)
        if pace == "slow":  # the control
            asked = _asked(vlm.prepare(ASKED, PICTURE))
            assert "".join(asked) == ASKED
        else:
            with pytest.raises(InputError, match="writes something else each time"):
                vlm.prepare(ASKED, PICTURE)


def _asked(x):
    return [token for token, role in zip(x.tokens, x.roles, strict=True) if role == "question"]


@pytest.mark.parametrize("kind", ["words", "few merges"])
def test_a_small_vocabulary_leaves_the_template_as_it_is(kind, monkeypatch):
    """Letters that stand for a reply are one token there, all of them; or two, of which a blank is the first."""
    vlm = tokenizers.chat(kind, monkeypatch)
    said = "{% if message['role'] == 'assistant' %} {% endif %}"  # as LLaVA's: "ASSISTANT:" and then " purple"
    template = TEMPLATE.replace(": ", ":").replace("MARKER", "<image>")
    vlm.processor.chat_template = template.replace(":{% for part", f":{said}{{% for part")
    x = vlm.prepare("what color is it ?", PICTURE, answer="purple")
    turns = chat.conversation("what color is it ?", [PICTURE])
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "purple"}]})
    whole = vlm.processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    assert whole[0, : x.length].tolist() == x.model_inputs["input_ids"][0].tolist()
    assert "".join(x.answer_tokens).strip() == "purple"


def test_the_same_answer_stands_in_the_same_prompt_however_it_is_given(thinking):
    x, bare = thinking.prepare(ASKED, PICTURE, answer="A cat."), thinking.prepare(ASKED, PICTURE)
    assert "".join(bare.tokens).endswith("assistant: ")  # what the processor makes for generation
    for y in (thinking.answered(bare, "A cat."), thinking.answered(thinking.answered(bare, "No."), "A cat.")):
        assert torch.equal(x.input_ids, y.input_ids)
        assert (x.roles, x.answer_start, x.texts, x.tokens) == (y.roles, y.answer_start, y.texts, y.tokens)
    made = thinking.generate(bare, 4)
    kept = thinking.answered(bare, made)  # what the model said itself stays where it said it
    assert kept.answer_start == bare.length and kept.answer_ids.tolist() == list(made.ids)


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava():
    return li.wrap(tiny_llava())


def relabelled(vlm, x, position, role):
    given = {k: v for k, v in x.model_inputs.items() if k not in ("input_ids", "attention_mask")}
    roles = [role if i == position else was for i, was in enumerate(x.roles)]
    return inspect.unwrap(li.HookedVLM.inputs)(vlm, x.input_ids, x.answer_start, roles, **given)


def test_roles_that_are_given_fit_what_stands_there(llava):
    x = tiny_inputs(llava)
    image, text = x.roles.index("image"), x.roles.index("question")
    assert relabelled(llava, x, text, "context").roles[text] == "context"  # the control
    for position, role, message in (
        (text, "qestion", r"no role 'qestion': did you mean 'question'\?; the roles are"),
        (image, "imgae", r"no role 'imgae': did you mean 'image'\?"),
        (text, "zzz", "no role 'zzz'; the roles are"),
        (image, "question", f"position {image} has the role 'question', and an image token stands there"),
        (text, "image", f"position {text} has the role 'image', and no image token stands there"),
        (x.length - 1, "question", "and an answer token stands there"),
        (text, "answer", "and no answer token stands there"),
    ):
        with pytest.raises(VisibilityError, match=message):
            relabelled(llava, x, position, role)
    with pytest.raises(VisibilityError, match=r"did you mean 'context'\?"):
        x.where("contex")


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_marks_around_an_image_are_no_question(name):
    x = tiny_example(li.wrap(tiny_model(name)), name)
    marks = [role for token, role in zip(x.input_ids[0].tolist(), x.roles, strict=True) if token in (BEGIN, END)]
    assert marks == ["template"] * 2 and x.roles.count("question") == len(QUESTION) - 1


def test_marks_that_only_the_tokenizer_names(llava):
    ids = torch.tensor([[1, BEGIN, 30, 31, 40, *ANSWER]])
    assert llava.inputs(ids, 5).roles[1] == "question"  # the control: nothing says what it is
    assert li.wrap(tiny_llava(), processor("llava")).inputs(ids, 5).roles[1] == "template"


# --- how long -----------------------------------------------------------------------------------------------------


def test_an_example_that_is_too_long_is_warned_of(llava):
    limit = llava.model.config.get_text_config().max_position_embeddings
    ids = torch.full((1, limit + 1), 30)
    with pytest.warns(LvlmInterpWarning, match=f"has {limit + 1:,} positions, and the model was made for {limit:,}"):
        llava.inputs(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llava.inputs(ids[:, 1:])
    chatty = li.wrap(tiny_llava(), processor("llava"))
    with pytest.warns(LvlmInterpWarning, match=f"was made for {limit:,}"):
        chatty.prepare(ASKED, PICTURE, answer="a" * limit)
    with pytest.warns(LvlmInterpWarning):
        chatty.answered(chatty.prepare(ASKED), "a" * limit)


def test_stretched_positions_are_counted():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(max_position_embeddings=100, rope_parameters=rope)
    assert longest(config) == 400 and longest(transformers.LlamaConfig(max_position_embeddings=100)) == 100


# --- padding in one example -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [True, False])
def test_reductions_leave_padding_out(llava, left):
    x = tiny_inputs(llava)
    given = {k: v for k, v in x.model_inputs.items() if k not in ("input_ids", "attention_mask")}
    pad = torch.zeros(1, 3, dtype=torch.long)
    both = x.input_ids, torch.ones_like(x.input_ids)
    ids, mask = (torch.cat([pad, some] if left else [some, pad], 1) for some in both)
    padded = llava.inputs(ids, attention_mask=mask, **given)
    site, keep = "blocks.*.hook_resid_post", slice(3, None) if left else slice(None, -3)
    whole = llava.capture(padded, site)
    mean, last = (llava.capture(padded, site, reduce=reduce) for reduce in ("mean", "last"))
    for name in (f"blocks.{n}.hook_resid_post" for n in range(llava.depth)):
        assert torch.allclose(mean[name], whole[name][:, keep].mean(1), atol=1e-6)
        assert torch.equal(last[name], whole[name][:, keep][:, -1])
        assert not torch.allclose(mean[name], whole[name].mean(1), atol=1e-3)  # the control
    first = llava.capture(padded, site, reduce="mean", positions=[0, 4] if left else [4, -1])
    assert torch.allclose(first["blocks.0.hook_resid_post"], whole["blocks.0.hook_resid_post"][:, 4])
    with pytest.raises(InputError, match="attention_mask of this example is 0 at all"):
        llava.capture(padded, site, reduce="mean", positions=[0] if left else [-1])


def test_a_picture_that_is_told_as_text_is_not_passed_over(tmp_path):
    vlm = li.wrap(tiny_model("llava"), processor("llava"))
    PICTURE.save(path := tmp_path / "a.png")
    with pytest.raises(InputError, match=r"part 0 of message 0.*names a picture"):
        vlm.prepare_chat([{"role": "user", "content": [str(path), ASKED]}])
    shown = vlm.prepare_chat([{"role": "user", "content": [{"type": "image", "path": str(path)}, ASKED]}])
    assert len(shown.images) == 1


def test_empty_parts_say_nothing():
    vlm = li.wrap(tiny_model("llava"), processor("llava"))
    parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": ASKED}]
    plain = vlm.prepare_chat([{"role": "user", "content": parts}])
    empty = {"type": "text", "text": ""}
    padded = vlm.prepare_chat([{"role": "user", "content": [empty, *parts, empty]}])
    assert torch.equal(padded.input_ids, plain.input_ids)


def test_a_template_that_writes_the_question_twice_is_refused():
    """What stands between is the template's, and would be hidden with the question."""
    own = processor("llava")
    own.chat_template = TEMPLATE.replace("MARKER", "<image>") + "Remember: {{ messages[-1]['content'][-1]['text'] }}\n"
    with pytest.raises(InputError, match=r"writes the question twice, with words of its own between.*Remember"):
        li.wrap(tiny_llava(), own).prepare(ASKED, PICTURE)


def test_an_answer_of_which_a_template_leaves_a_part_out_is_scored_as_it_is():
    """As templates do with thoughts of earlier turns."""
    own = processor("llava")
    told = "{{ part['text'].split('|')[-1] if message['role'] == 'assistant' else part['text'] }}"
    own.chat_template = TEMPLATE.replace("MARKER", "<image>").replace("{{ part['text'] }}", told)
    vlm = li.wrap(tiny_llava(), own)
    x = vlm.prepare(ASKED, PICTURE, answer="It is red.|Red.")
    assert "".join(x.answer_tokens) == "It is red.|Red."
    assert "".join(vlm.prepare(ASKED, PICTURE, answer="Red.").answer_tokens) == "Red."
