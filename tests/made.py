"""Diagnoses made by hand: how they are shown can be tested without a model."""

import torch

from lvlm_interp.attribution.credit import CreditSplit
from lvlm_interp.attribution.patch_map import PatchMap
from lvlm_interp.counterfactuals.contrast import Contrast, cal_weights, token_classes
from lvlm_interp.inputs.words import split_words
from lvlm_interp.report.diagnosis import Diagnosis
from lvlm_interp.results import Provenance


def about(method, **parameters):
    return Provenance("made", "0123", method, parameters, dtype="float32", versions={"python": "3"})


def made_contrast(tokens, draw):
    with_logprob, without_logprob = -draw(len(tokens)).abs(), -draw(len(tokens)).abs()
    delta = draw(len(tokens)) * 3
    delta_nats = with_logprob - without_logprob
    return Contrast(
        tokens=tuple(tokens),
        with_logit=delta,
        without_logit=delta * 0,
        delta=delta,
        with_logprob=with_logprob,
        without_logprob=without_logprob,
        delta_nats=delta_nats,
        hellinger=draw(len(tokens)).sigmoid(),
        weights=cal_weights(delta),
        classes=token_classes(delta_nats),
        provenance=about("contrast", threshold=1.0),
    )


def made_map(texts, draw, grid=(2, 3), size=(60, 40)):
    (rows, columns), (width, height) = grid, size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    sides = torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], -1)
    return PatchMap(
        tokens=tuple(texts),
        values=draw(len(texts), rows, columns),
        image_total=draw(len(texts)),
        boxes=sides * torch.tensor([width, height, width, height]),
        size=size,
        hide_from="text",
        provenance=about("occlusion"),
    )


def made(tokens=("Pur", "ple", "."), roles=("question", "image"), seed=0, **changes):
    """A diagnosis with random numbers; `changes` replaces fields."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    texts = tuple(word.text for word in split_words(tokens))
    values = {name: draw(len(texts), 1 << len(roles)).double() + 3 for name in ("odds", "full")}
    fields = {
        "question": "What color is it?",
        "answer": "".join(tokens),
        "answer_generated": True,
        "answer_finished": True,
        "context": None,
        "system": None,
        "words": texts,
        "contrast": made_contrast(tokens, draw),
        "credit": CreditSplit(
            tokens=texts,
            players=tuple(roles),
            player_roles=tuple(roles),
            player_texts=("",) * len(roles),
            value="odds",
            computed=("odds", "full"),
            units=("nats", "nats"),
            numbers=torch.stack([values["odds"], values["full"]]),
            alternatives=((" Red", " Blue"),) * len(texts),
            kept=("template",),
            provenance=about("credit"),
        ),
        "patches": made_map(texts, draw),
        "no_map": None,
        "picture": torch.full((40, 60, 3), 200, dtype=torch.uint8),
        "provenance": about("diagnosis"),
    }
    return Diagnosis(**{**fields, **changes})


def with_odds(diagnosis, *values):
    """The same with other values of the coalitions of its only word."""
    import dataclasses

    odds = torch.tensor([values], dtype=torch.float64)
    numbers = torch.stack([odds, diagnosis.credit.full])
    return dataclasses.replace(diagnosis, credit=dataclasses.replace(diagnosis.credit, numbers=numbers))
