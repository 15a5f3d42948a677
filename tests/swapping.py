"""Swap tests made by hand: a fake model whose answer is a function of what it is given, and results without a model."""

import pandas as pd
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.definitions import PARTS
from lvlm_interp.attribution.split import CreditSplit
from lvlm_interp.attribution.swap import Pointed, Swapped, SwapTest
from lvlm_interp.attribution.variants import Variant
from tests.made import about
from tests.saved import processor
from tests.tiny import tiny_llava

ROLES = ("question", "context", "system", "image")
COLORS = {"red": "#ff0000", "blue": "#0000ff", "green": "#00ff00"}


def picture(color, side=28):
    """All of one colour."""
    return Image.new("RGB", (side, side), COLORS[color])


def color_of(x):
    """The name of the colour in a picture's middle; empty without one."""
    if not x.images:
        return ""
    shown = x.images[0].picture
    middle = "#{:02x}{:02x}{:02x}".format(*shown.getpixel((shown.width // 2, shown.height // 2)))
    return {code: name for name, code in COLORS.items()}.get(middle, "another")


def answering(function):
    """A tiny random model that answers what a function makes of the colour that is seen and of what was written."""
    vlm = li.wrap(tiny_llava(), processor("llava"))

    def generate(x, max_new_tokens=64):
        told = {name: x.texts.get(name, "").strip() for name in ("context", "question", "system")}
        text = function(image=color_of(x), **told)
        return li.Answer(text, vlm.processor.tokenizer(text, add_special_tokens=False).input_ids)

    vlm.generate = generate
    return vlm


def table(*rows, **same):
    """Rows (source, what it changes) of one example, whose original is the first; `same` stands in all."""
    original = {"example": "e", "picture": None, "context": None, "system": None, **same, "source": "original"}
    changed = [{**original, "source": source, **changes} for source, changes in rows]
    return pd.DataFrame([original, *changed], dtype=object)


def variant(source, answer, **given):
    """A variant with its answer; there is a picture, and a question, unless it is said."""
    told = {"image": "a.png", "context": "", "question": "What color is it?", "system": ""}
    return Variant(source, **{**told, **given}, answer=answer)


def split_of(worth, roles=ROLES, quoting=()):
    """A split in which each source, and `prior`, is worth so many nats whatever else is seen; with `quoting`, of an
    answer that stands in a question that asks, or does not."""
    seen = torch.arange(1 << len(roles))[:, None] >> torch.arange(len(roles)) & 1
    values = worth.get("prior", 0.0) + seen.double() @ torch.tensor([worth.get(r, 0.0) for r in roles]).double()
    return CreditSplit(
        tokens=("Red.",),
        players=roles,
        player_roles=roles,
        player_texts=("",) * len(roles),
        value="odds",
        computed=("odds", "full"),
        units=("nats", "nats"),
        numbers=torch.stack([values, values + 9])[:, None],
        alternatives=((" Blue",),),
        kept=("template",),
        quoting=quoting,
        provenance=about("credit"),
    )


def swapped(decides, worth, name="e", kind="color", group="g", **more):
    """An example that one source decides, with a credit of so many nats."""
    answers = {source: "Blue." if source == decides else "Red." for source in ("image", "context", "system")}
    given = {"context": "It is red.", "system": "Be red.", "question": "Is it red?"}
    changes = [variant(source, answer, **given) for source, answer in answers.items()]
    asked = [variant("question", "Blue.", **{**given, "question": "Is it blue?"})] if decides == "question" else []
    given["question"] = given["question"] if decides == "question" else "What is it?"
    variants = (variant("original", "Red.", **given), *changes, *asked)
    return Swapped(name, kind, group, variants, dict.fromkeys(PARTS, split_of(worth)), **more)


def made_test(*examples, **changes):
    """A swap test of examples."""
    some = examples or (
        swapped("image", {"image": 3.0, "prior": 1.0}, "a", pointed=Pointed(True, 0.25)),
        swapped("context", {"image": 2.0, "context": 1.0}, "b", "hint", "h"),
    )
    return SwapTest(tuple(some), **changes, provenance=about("swap test"))
