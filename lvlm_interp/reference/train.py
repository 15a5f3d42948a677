"""Train the adapter of the reference LVLM: `python -m lvlm_interp.reference.train --out RUN`.

Two stages, after LLaVA (Liu et al. 2023, section 4.2):

1. *Align*: only the projector learns; each patch is regressed onto the input embedding of the word it shows.
2. *Tune*: projector and LoRA learn to answer questions. The questions of a scene share its image through a block
   attention mask, each at the positions that it would have alone; the loss is on answer tokens only. Every step draws
   fresh scenes, so that no scene is seen twice.

Stopped at any moment, the same command goes on from the last checkpoint. Needs the extra `lvlm-interp[train]`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lvlm_interp.reference import scenes
from lvlm_interp.reference.architecture import (
    END,
    FEATURE_LAYERS,
    IMAGE_MEAN,
    IMAGE_STD,
    LORA_ALPHA,
    LORA_RANK,
    LORA_TARGETS,
    PATCH,
    PROMPT,
    TEXT_WIDTH,
    Projector,
    folded,
)
from lvlm_interp.reference.base_weights import load_language_model, load_tokenizer, load_vision_tower
from lvlm_interp.reference.scenes import Scene

GRID = scenes.SIZE // PATCH
ASKED_AT_MOST = {"objects": 1, "name": 1, "place": 1, "color": 1, "yes/no": 4}
HELD_OUT = 500_000  # seeds of the scenes that the learning curve is measured on
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """What decides the result, written beside it."""

    seed: int = 0
    align_scenes: int = 4800
    align_epochs: int = 10
    align_rate: float = 2e-3
    steps: int = 425
    scenes_per_step: int = 16
    projector_rate: float = 5e-4
    lora_rate: float = 8e-4
    warmup: int = 20
    final_rate: float = 0.02
    evaluate_every: int = 100
    checkpoint_every: int = 25
    held_out_scenes: int = 192


@dataclass(frozen=True)
class Batch:
    """Packed questions. `see` is True where a row may look: `[scene, 1, row, key]`."""

    features: Tensor
    ids: Tensor
    positions: Tensor
    labels: Tensor
    see: Tensor
    kinds: list[list[str]]


class Learner(nn.Module):
    """Frozen base models with a trainable projector and LoRA."""

    def __init__(self) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        self.tokenizer = load_tokenizer()
        self.vision = load_vision_tower().requires_grad_(False)
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=list(LORA_TARGETS))
        base = load_language_model().requires_grad_(False)
        base.set_attn_implementation("eager")  # on CPU faster than SDPA for short rows with a mask, and half the step
        self.language: Any = get_peft_model(base, config)
        self.projector = Projector()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(self.projector.linear_1.in_features))
        self.register_buffer("std", torch.ones(self.projector.linear_1.in_features))

    @property
    def lora(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.language.named_parameters() if p.requires_grad}

    @functools.cached_property
    def embeddings(self) -> Tensor:
        return self.language.get_input_embeddings().weight.detach()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @torch.no_grad()
    def features(self, batch: Sequence[Scene]) -> Tensor:
        """Raw patch features of three layers, `[scene, patch, 1152]`."""
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
        pixels = torch.stack([(_pixels(s) - mean) / std for s in batch])
        states = self.vision(pixels, output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, 1:] for layer in FEATURE_LAYERS], -1)

    def whitened(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `[scene, row, width]`."""
        start = len(self.ids(PROMPT.split("{image}")[0]))
        embedded = self.language.get_input_embeddings()(batch.ids)
        image = self.projector(self.whitened(batch.features)).to(embedded.dtype)
        embedded = torch.cat([embedded[:, :start], image, embedded[:, start + GRID**2 :]], 1)
        mask = torch.zeros_like(batch.see, dtype=embedded.dtype).masked_fill(~batch.see, -1e9)
        decoder = self.language.get_base_model().model
        return decoder(
            inputs_embeds=embedded, attention_mask=mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state

    def adapter(self) -> dict[str, Tensor]:
        """What ships: the projector on raw features and the LoRA matrices, in float16."""
        state = {f"projector.{k}": v for k, v in folded(self.projector, self.mean, self.std).items()}
        for name, tensor in self.lora.items():
            state[name.removeprefix("base_model.model.model.").replace(".default.weight", "")] = tensor.detach()
        return {k: v.to(torch.float16).contiguous() for k, v in state.items()}


def _pixels(scene: Scene) -> Tensor:
    flat = torch.frombuffer(bytearray(scene.image.tobytes()), dtype=torch.uint8)
    return flat.view(scenes.SIZE, scenes.SIZE, 3).permute(2, 0, 1).float() / 255


# --- packing --------------------------------------------------------------------------------------


def sample_questions(scene: Scene) -> list[scenes.Question]:
    """A mix of kinds, so that yes/no questions do not crowd out the rest."""
    left, chosen = dict(ASKED_AT_MOST), []
    for question in scene.questions():
        if left[question.kind]:
            left[question.kind] -= 1
            chosen.append(question)
    return chosen


def pack(learner: Learner, scene: Scene) -> tuple[list[int], list[int], list[int], list[int], list[str]]:
    """Token ids, positions, question number (0: shared prefix) and label of every row; kinds of the questions."""
    before, after = PROMPT.split("{image}")
    ids = learner.ids(before) + [0] * GRID**2
    shared = len(ids)
    positions, blocks, labels = list(range(shared)), [0] * shared, [IGNORED] * shared
    questions = sample_questions(scene)
    for number, question in enumerate(questions, 1):
        asked = learner.ids(after.format(question=question.text))
        answer = learner.ids(question.answer + END)
        ids += asked + answer
        positions += range(shared, shared + len(asked) + len(answer))
        blocks += [number] * (len(asked) + len(answer))
        labels += [IGNORED] * len(asked) + answer
    return ids, positions, blocks, labels, [q.kind for q in questions]


def collate(learner: Learner, batch: Sequence[Scene]) -> Batch:
    packed = [pack(learner, scene) for scene in batch]
    length = max(len(row[0]) for row in packed)
    ids, positions, blocks, labels = (
        torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in packed])
        for i, fill in enumerate((0, 0, -1, IGNORED))
    )
    same = (blocks[:, None, :] == 0) | (blocks[:, None, :] == blocks[:, :, None])
    see = torch.tril(torch.ones(length, length, dtype=torch.bool)) & same
    return Batch(learner.features(batch), ids, positions, labels, see[:, None], [row[4] for row in packed])


# --- stage 1: align -------------------------------------------------------------------------------


def patch_targets(learner: Learner, scene: Scene) -> tuple[Tensor, Tensor]:
    """The embedding that each patch should land on `[patch, width]`, and its weight `[patch]`."""

    def word(text: str) -> Tensor:
        return learner.embeddings[learner.ids(" " + text)].mean(0)

    target, weight = torch.zeros(GRID, GRID, TEXT_WIDTH), torch.full((GRID, GRID), 0.15)
    target += word("background")
    for item in scene.items:
        shown = word(item.noun) + (0.7 * word(item.color) if item.color else 0)
        for row, column in _covered(item.box):
            target[row, column], weight[row, column] = shown, 1.0
    middle = (GRID - 1) / 2
    for i in range(GRID):
        if i != middle:
            target[i, :] += 0.35 * word("top" if i < middle else "bottom")
            target[:, i] += 0.35 * word("left" if i < middle else "right")
    return target.flatten(0, 1), weight.flatten()


def _covered(box: tuple[int, int, int, int]) -> Iterator[tuple[int, int]]:
    """Patches of which at least half lies in the box."""
    for row in range(GRID):
        for column in range(GRID):
            wide = min(box[2], (column + 1) * PATCH) - max(box[0], column * PATCH)
            high = min(box[3], (row + 1) * PATCH) - max(box[1], row * PATCH)
            if wide > 0 and high > 0 and 2 * wide * high >= PATCH**2:
                yield row, column


def align(learner: Learner, settings: Settings) -> None:
    """Regress patches onto word embeddings, on whitened features."""
    seeds = scenes.TRAINING_SEEDS.start
    chunks = [scenes.make_scenes(32, seeds + i) for i in range(0, settings.align_scenes, 32)]
    features, targets, weights = [], [], []
    for chunk in map(list, chunks):
        features.append(learner.features(chunk))
        for target, weight in (patch_targets(learner, scene) for scene in chunk):
            targets.append(target)
            weights.append(weight)
    x, y, w = torch.cat(features), torch.stack(targets), torch.stack(weights)
    learner.mean.copy_(x.flatten(0, 1).mean(0))
    learner.std.copy_(x.flatten(0, 1).std(0))
    x, scale = learner.whitened(x), y.var()
    optimizer = torch.optim.AdamW(learner.projector.parameters(), lr=settings.align_rate, weight_decay=1e-4)
    for epoch in range(settings.align_epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(32):
            loss = (w[rows, :, None] * (learner.projector(x[rows]) - y[rows]) ** 2).mean() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        optimizer.param_groups[0]["lr"] *= 0.75
        print(f"align epoch {epoch + 1}: loss {total / len(x):.4f}", flush=True)


# --- stage 2: tune --------------------------------------------------------------------------------


def step_scenes(step: int, settings: Settings) -> list[Scene]:
    """The scenes of a step: never seen before, and the same whenever the step is run."""
    first = scenes.TRAINING_SEEDS.start * (2 + settings.seed) + step * settings.scenes_per_step
    return list(scenes.make_scenes(settings.scenes_per_step, first))


def answer_logits(learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the rows that predict an answer token `[answer token, vocabulary]`, and those tokens."""
    labels = batch.labels[:, 1:]
    on = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        states = learner.hidden(batch)[:, :-1][on]
        return learner.language.get_base_model().lm_head(states).float(), labels[on]


def tune_step(learner: Learner, optimizer: torch.optim.Optimizer, step: int, settings: Settings) -> float:
    progress = step / settings.steps
    scale = min(1.0, (step + 1) / settings.warmup) * max(settings.final_rate, 1 - progress)
    for group, rate in zip(optimizer.param_groups, (settings.projector_rate, settings.lora_rate), strict=True):
        group["lr"] = rate * scale
    logits, labels = answer_logits(learner, collate(learner, step_scenes(step, settings)))
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(learner: Learner, settings: Settings) -> dict[str, float]:
    """Share of held-out answers that are right to the last token, by kind of question.

    Teacher forcing decides this exactly as greedy decoding does: a greedy answer is right exactly if the
    right token is the most likely one after every right prefix.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    end = learner.tokenizer.convert_tokens_to_ids(END)
    for first in range(HELD_OUT, HELD_OUT + settings.held_out_scenes, 16):
        batch = collate(learner, list(scenes.make_scenes(16, first)))
        logits, labels = answer_logits(learner, batch)
        hit, ends = logits.argmax(-1) == labels, (labels == end).nonzero().flatten() + 1
        answers = hit.tensor_split(ends)[:-1]
        for kind, answer in zip((k for row in batch.kinds for k in row), answers, strict=True):
            right[kind].append(bool(answer.all()))
    return {kind: round(sum(hits) / len(hits), 3) for kind, hits in sorted(right.items())}


def tune(learner: Learner, settings: Settings, out: Path) -> None:
    parameters = {**dict(learner.projector.named_parameters(prefix="projector")), **learner.lora}
    groups = [{"params": list(learner.projector.parameters())}, {"params": list(learner.lora.values())}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    done = resume(learner, optimizer, parameters, out)
    average, start = None, time.time()
    for step in range(done, settings.steps):
        loss = tune_step(learner, optimizer, step, settings)
        average = loss if average is None else 0.95 * average + 0.05 * loss
        if (step + 1) % settings.checkpoint_every == 0:
            pace = (time.time() - start) / (step + 1 - done)
            print(f"step {step + 1}: loss {average:.3f}, {pace:.1f} s a step", flush=True)
            checkpoint(learner, optimizer, parameters, step + 1, out)
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            record = {"step": step + 1, "loss": round(average, 4), **evaluate(learner, settings)}
            with (out / "curve.jsonl").open("a") as log:
                print(json.dumps(record), file=log)
            print("held out", record, flush=True)


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint(
    learner: Learner, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], step: int, out: Path
) -> None:
    """Weights and optimizer state in one safetensors file, replaced whole."""
    state = {f"weight/{n}": p.detach() for n, p in parameters.items()} | {"mean": learner.mean, "std": learner.std}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{key}/{name}"] = value
    save_file(state, out / "checkpoint.tmp", metadata={"step": str(step)})
    os.replace(out / "checkpoint.tmp", out / "checkpoint.safetensors")


def resume(
    learner: Learner, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], out: Path
) -> int:
    """Restore the last checkpoint, if there is one; returns the number of steps done."""
    from safetensors import safe_open

    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    state = load_file(path)
    learner.mean.copy_(state["mean"])
    learner.std.copy_(state["std"])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"weight/{name}"])
            moments = {k.split("/")[0]: v for k, v in state.items() if k.endswith(f"/{name}") and k[0] != "w"}
            if moments:
                optimizer.state[parameter] = moments
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the adapter of the reference LVLM.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if it holds one")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    options = parser.parse_args(arguments)
    settings = Settings(steps=options.steps, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    torch.manual_seed(settings.seed)
    learner = Learner()
    if not (options.out / "checkpoint.safetensors").exists():
        align(learner, settings)
        named = {**dict(learner.projector.named_parameters(prefix="projector")), **learner.lora}
        checkpoint(learner, torch.optim.AdamW(learner.parameters()), named, 0, options.out)
    tune(learner, settings, options.out)
    save_file(learner.adapter(), options.out / "adapter.safetensors")
    print(f"wrote {options.out / 'adapter.safetensors'}")


if __name__ == "__main__":
    main()
