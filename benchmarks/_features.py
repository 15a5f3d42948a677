"""Features of the reference model over its scenes, kept on disk, since reading them takes longer than all the rest."""

import dataclasses
from pathlib import Path

import torch

import lvlm_interp as li
from lvlm_interp.probes.features import Features
from lvlm_interp.reference import questions

SITES = {"layers": "blocks.*.hook_resid_post", "heads": "blocks.*.attn.hook_z"}
SEED = 500_000  # scenes that the reference model was not trained on
WORDS = "words"  # nouns in the middle of answers, for probes to (x, y)


def examples(level: str, count: int) -> list[questions.Example]:
    made = questions.words(count, SEED) if level == WORDS else questions.examples(level, count, SEED)
    return list(made)


def features(vlm: li.HookedVLM, level: str, count: int, folder: Path | None) -> dict[str, Features]:
    """Features of every layer and every head at the last position, kept in `folder`, if one is given."""
    asked = [example.inputs(vlm) for example in examples(level, count)]
    store = folder / f"{vlm.fingerprint}-{level}-{count}" if folder else None
    found = li.collect_features(vlm, asked, SITES, progress=True, store=store)
    return {name: dataclasses.replace(f, values=torch.as_tensor(f.values[:])) for name, f in found.items()}
