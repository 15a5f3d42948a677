"""What the language model said before it was trained, so that it goes on saying it: texts without pictures.

The base model's own replies are read again by the model that learns; the divergence between the two distributions over
the next token is part of the loss.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lvlm_interp.reference.architecture import END, START
from lvlm_interp.reference.learner import Learner
from lvlm_interp.reference.low_rank import without
from lvlm_interp.reference.things import nouns, with_article

TOPICS = (
    "the sun", "the moon", "rain", "snow", "winter", "summer", "the sea", "mountains", "forests", "rivers", "deserts",
    "France", "Italy", "Japan", "China", "Egypt", "Brazil", "Canada", "London", "Paris", "Rome", "Africa", "Europe",
    "bread", "milk", "honey", "coffee", "sugar", "salt", "gold", "iron", "wood", "glass", "paper", "wool", "cotton",
    "music", "painting", "books", "school", "teachers", "doctors", "farmers", "pilots", "cooks", "bees", "birds",
    "fish", "dogs", "cats", "horses", "cows", "lions", "numbers", "colours", "the alphabet", "days of the week",
    "months of the year", "the human body", "plants", "gravity", "electricity", "water", "fire", "ice", "planets",
)  # fmt: skip
ASKED = ("Tell me about {}.", "Write two sentences about {}.", "What should a child know about {}?")
PER_STEP, LENGTH = 4, 48


def prompts() -> list[str]:
    """What the base model is asked."""
    about = [*TOPICS, *map(with_article, nouns())]
    return [ASKED[n % len(ASKED)].format(one) for n, one in enumerate(about)]


@torch.no_grad()
def replies(learner: Learner, path: Path) -> list[str]:
    """Prompts with the base model's greedy replies; written to a file, and read from it if it is there."""
    if path.exists():
        return list(json.loads(path.read_text(encoding="utf-8")))
    asked = [f"{START}user\n{prompt}{END}\n{START}assistant\n" for prompt in prompts()]
    made: list[str] = []
    with without(learner.updates):
        for some in (asked[first : first + 32] for first in range(0, len(asked), 32)):
            made += [a + b for a, b in zip(some, _said(learner, some), strict=True)]
    path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return made


def _said(learner: Learner, asked: Sequence[str]) -> list[str]:
    tokens = [learner.ids(text) for text in asked]
    longest = max(map(len, tokens))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in tokens])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in tokens])
    made = learner.language.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0
    )
    return learner.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)


def divergence(learner: Learner, texts: Sequence[str], step: int) -> Tensor:
    """The mean over positions of KL(base ‖ learner), in nats, on some of the texts, drawn from the step."""
    chosen = random.Random(f"remember:{step}").sample(list(texts), PER_STEP)
    tokens = [learner.ids(text) for text in chosen]
    longest = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
    # a cache would make compiled blocks differ by their number, and be compiled one by one
    read = functools.partial(learner.language, input_ids=ids, attention_mask=mask, use_cache=False)
    with torch.no_grad(), without(learner.updates):
        base = read().logits.float().log_softmax(-1)
    own = read().logits.float().log_softmax(-1)
    apart = nn.functional.kl_div(own, base, reduction="none", log_target=True).sum(-1)
    return apart[mask.bool()].mean()
