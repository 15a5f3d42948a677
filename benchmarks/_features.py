"""Features of the reference model over its scenes, kept on disk, since reading them takes longer than all the rest."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

import lvlm_interp as li
from lvlm_interp.methods.features import Features
from lvlm_interp.reference import questions

SITES = {"layers": "blocks.*.hook_resid_post", "heads": "blocks.*.attn.hook_z"}
SEED = 500_000  # scenes that the reference model was not trained on
WORDS = "words"  # nouns in the middle of answers, for probes to (x, y)


def examples(level: str, count: int) -> list[questions.Example]:
    made = questions.words(count, SEED) if level == WORDS else questions.examples(level, count, SEED)
    return list(made)


def features(vlm: li.HookedVLM, level: str, count: int, folder: Path | None) -> dict[str, Features]:
    """Features of every layer and every head at the last position, read from `folder` if they are there."""
    file = folder / f"{vlm.fingerprint}-{level}-{count}.safetensors" if folder else None
    if file is not None and file.exists():
        with safe_open(str(file), "pt") as stored:
            names = stored.metadata()
            return {name: Features(stored.get_tensor(name), tuple(names[name].split())) for name in SITES}
    asked = [example.inputs(vlm) for example in examples(level, count)]
    found = li.collect_features(vlm, asked, SITES, progress=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        names = {name: " ".join(f.sites) for name, f in found.items()}
        save_file({name: f.values for name, f in found.items()}, str(file), metadata=names)
    return found
