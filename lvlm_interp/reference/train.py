"""Train the adapter of the reference LVLM: `python -m lvlm_interp.reference.train --out RUN`.

Three stages, the first two after LLaVA (Liu et al. 2023, section 4.2):

1. *Align*: only the projector learns; each patch is regressed onto the input embedding of the word it shows.
2. *Tune*: projector and LoRA learn to answer questions. The questions of a scene share its image through a block
   attention mask, each at the positions that it would have alone; the loss is on answer tokens only. Every step draws
   fresh scenes, so that no scene is seen twice.
3. *Drop*: as tuning, with the question, the image or both hidden from some answers. So a model with a role hidden
   answers by what is left, p(answer | what is seen), and not at random: the counterfactuals of this package are then in
   distribution (Covert et al. 2021, Explaining by Removing: missingness during training). Only LoRA learns.

Stopped at any moment, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lvlm_interp.checkpoints import read_checkpoint, write_checkpoint
from lvlm_interp.reference import scenes
from lvlm_interp.reference.align import align
from lvlm_interp.reference.architecture import END
from lvlm_interp.reference.learner import Batch, Learner, Settings
from lvlm_interp.reference.packing import IGNORED, Packed, batches, collate, pack_all
from lvlm_interp.reference.remembering import divergence, replies
from lvlm_interp.reference.together import added_up, gathered, mine, number, run, wait

CHECKPOINT = "checkpoint.safetensors"
HELD_OUT = 500_000  # seeds of the scenes that the learning curve is measured on


# --- stages 2 and 3 -------------------------------------------------------------------------------


def keep(write: Callable[..., Any], *given: Any) -> None:
    """Write by the first process alone; the others wait."""
    if number() == 0:
        write(*given)
    wait()


def say(text: str) -> None:
    """Print it once."""
    keep(functools.partial(print, flush=True), text)


def note(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of records, and print it."""
    with path.open("a") as log:
        print(json.dumps(record), file=log)
    print("held out", record, flush=True)


def step_seeds(step: int, settings: Settings) -> range:
    """The seeds of a step: never seen before, and the same whenever the step is run."""
    first = scenes.TRAINING_SEEDS.start * (2 + settings.seed) + step * settings.tune.scenes
    return range(first, first + settings.at(step)[0].scenes)


def answer_logits(learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the rows that predict an answer token `[answer token, vocabulary]`, and those tokens."""
    labels = batch.labels[:, 1:]
    on = labels != IGNORED
    states = learner.hidden(batch)[:, :-1][on]
    return learner.language.lm_head(states).float(), labels[on]


def answer_loss(learner: Learner, rows: Sequence[Packed], answered: int) -> Tensor:
    """What some rows add to the mean loss of an answer token, of which there are `answered` in all."""
    return nn.functional.cross_entropy(*answer_logits(learner, collate(learner, rows)), reduction="sum") / answered


def descend(optimizer: torch.optim.Optimizer, losses: Sequence[Callable[[], Tensor]]) -> list[float]:
    """Step down the sum of losses, of which each process computes its own; returns each."""
    learnt = [p for group in optimizer.param_groups for p in group["params"]]
    values = torch.zeros(len(losses), dtype=torch.float64)
    optimizer.zero_grad()
    for turn in mine(len(losses)):
        loss = losses[turn]()
        loss.backward()
        values[turn] = loss.item()
    for parameter in learnt:
        parameter.grad = added_up(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    nn.utils.clip_grad_norm_(learnt, 1.0)
    optimizer.step()
    return list(added_up(values).tolist())


def tune_step(
    learner: Learner, optimizer: torch.optim.Optimizer, step: int, settings: Settings, texts: Sequence[str] = ()
) -> float:
    """One step; returns the mean loss of an answer token, in nats."""
    stage, done = settings.at(step)
    scale = min(1.0, (done + 1) / settings.warmup) * max(settings.final_rate, 1 - done / stage.steps)
    for group, rate in zip(optimizer.param_groups, (stage.projector_rate, stage.lora_rate), strict=True):
        group["lr"] = rate * scale
    learner.merge()
    rows = [row for seed in step_seeds(step, settings) for row in pack_all(learner, seed, stage)]
    answered = sum(label != IGNORED for row in rows for label in row.labels)
    losses = [functools.partial(answer_loss, learner, some, answered) for some in batches(rows)]
    held = [lambda: settings.remember * divergence(learner, texts, step)] if texts else []
    return sum(descend(optimizer, [*held, *losses])[len(held) :])


@torch.no_grad()
def evaluate(learner: Learner, settings: Settings) -> dict[str, float]:
    """Share of held-out answers that are right to the last token, by kind of talk.

    Teacher forcing decides this exactly as greedy decoding does: a greedy answer is right exactly if the
    right token is the most likely one after every right prefix.
    """
    learner.merge()
    seeds = range(HELD_OUT, HELD_OUT + settings.held_out_scenes)
    rows = list(batches([row for seed in seeds for row in pack_all(learner, seed, settings.tune)]))
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, hit in gathered([one for turn in mine(len(rows)) for one in judged(learner, rows[turn])]):
        right[kind].append(hit)
    return {kind: round(sum(hits) / len(hits), 3) for kind, hits in sorted(right.items())}


def judged(learner: Learner, rows: Sequence[Packed]) -> list[tuple[str, bool]]:
    """The kind of each talk of some rows, and whether it is answered rightly."""
    end = learner.tokenizer.convert_tokens_to_ids(END)
    logits, labels = answer_logits(learner, collate(learner, rows))
    hit, ends = logits.argmax(-1) == labels, (labels == end).nonzero().flatten() + 1
    kinds = [kind for row in rows for kind in row.kinds]
    return [(kind, bool(one.all())) for kind, one in zip(kinds, hit.tensor_split(ends)[:-1], strict=True)]


def tune(learner: Learner, settings: Settings, out: Path) -> None:
    """Stages 2 and 3; the adapter as it is at the end of each is kept."""
    groups = [{"params": list(learner.projector.parameters())}, {"params": list(learner.lora.values())}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    done = read_checkpoint(out / CHECKPOINT, learner.learning, optimizer)
    texts = replies(learner, out / "replies.json") if settings.remember else []
    average, start = None, time.time()
    for step in range(done, settings.steps):
        loss = tune_step(learner, optimizer, step, settings, texts)
        average = loss if average is None else 0.95 * average + 0.05 * loss
        pace = (time.time() - start) / (step + 1 - done)
        if (step + 1) % settings.checkpoint_every == 0:
            say(f"step {step + 1}: loss {average:.3f}, {pace:.1f} s a step")
            keep(write_checkpoint, out / CHECKPOINT, learner.learning, optimizer, step + 1)
        if (step + 1) % settings.evaluate_every == 0 or step + 1 in (settings.tune.steps, settings.steps):
            found = evaluate(learner, settings)
            record = {"step": step + 1, "loss": round(average, 4), "seconds": round(pace, 1), **found}
            keep(note, out / "curve.jsonl", record)
        if step + 1 == settings.tune.steps:
            keep(save_file, learner.adapter(), out / "tune.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the adapter of the reference LVLM.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if it holds one")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--tuned", type=Path, help="an adapter that is tuned already: begin with the last stage")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; a minute first, then faster")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each; two do more than two threads")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes is 1 or more, got {options.processes}")
    options.out.mkdir(parents=True, exist_ok=True)
    run(train, options, options.processes)


def train(options: argparse.Namespace) -> None:
    """All stages, from where the run is."""
    settings = Settings(seed=options.seed)
    keep((options.out / "settings.json").write_text, json.dumps(asdict(settings), indent=2) + "\n")
    torch.manual_seed(settings.seed)
    learner = Learner()
    keep(begin, learner, settings, options)
    if options.compile:
        learner.compile()
    tune(learner, settings, options.out)
    keep(save_file, learner.adapter(), options.out / "adapter.safetensors")
    say(f"wrote {options.out / 'adapter.safetensors'}")


def begin(learner: Learner, settings: Settings, options: argparse.Namespace) -> None:
    """The base model's replies, and the first stage, unless they are there."""
    replies(learner, options.out / "replies.json")
    if (options.out / CHECKPOINT).exists():
        return
    if options.tuned:
        learner.load_adapter(load_file(options.tuned))
    else:
        align(learner, settings)
        save_file(learner.adapter(), options.out / "align.safetensors")
    done = settings.tune.steps if options.tuned else 0
    write_checkpoint(options.out / CHECKPOINT, learner.learning, torch.optim.AdamW(learner.parameters()), done)


if __name__ == "__main__":
    main()
