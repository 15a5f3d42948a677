"""Train the adapter of the reference LVLM: `python -m lvlm_interp.reference.train --out RUN`.

Three stages, the first two after LLaVA (Liu et al. 2023, section 4.2):

1. *Align*: only the projector learns; each patch is regressed onto the input embedding of the word it shows.
2. *Tune*: projector and LoRA learn to answer questions. The questions of a scene share its image through a block
   attention mask, each at the positions that it would have alone; the loss is on answer tokens only. Every step draws
   fresh scenes, so that no scene is seen twice.
3. *Drop*: as tuning, with the question, the image or both hidden from some answers. So a model with a role hidden
   answers by what is left, p(answer | what is seen), and not at random: the counterfactuals of this package are then in
   distribution (Covert et al. 2021, Explaining by Removing: missingness during training). Only LoRA learns.

Stopped at any moment, the same command goes on from the last checkpoint. Needs the extra `lvlm-interp[train]`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
ASKED_AT_MOST = {"objects": 1, "name": 1, "place": 1}  # of a scene; for the other kinds see `Stage`
HELD_OUT = 500_000  # seeds of the scenes that the learning curve is measured on
IGNORED = -100
IMAGE, QUESTION = 1, 2  # sources that the last stage hides, as bits


@dataclass(frozen=True)
class Stage:
    """A run of steps: rates warm up and then decay linearly; of each question, roles are hidden with these chances."""

    steps: int
    scenes: int = 16
    yes_no: int = 4
    colors: int = 1
    projector_rate: float = 5e-4
    lora_rate: float = 8e-4
    hidden_question: float = 0.0
    hidden_image: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What decides the result, written beside it."""

    seed: int = 0
    align_scenes: int = 4800
    align_epochs: int = 10
    align_rate: float = 2e-3
    tune: Stage = Stage(425)
    drop: Stage = Stage(
        300, scenes=8, yes_no=1, colors=2, projector_rate=0.0, lora_rate=6e-4, hidden_question=0.5, hidden_image=0.1
    )
    warmup: int = 20
    final_rate: float = 0.02
    evaluate_every: int = 100
    checkpoint_every: int = 25
    held_out_scenes: int = 192

    @property
    def steps(self) -> int:
        """Steps of both stages together."""
        return self.tune.steps + self.drop.steps

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and which of its steps this is."""
        return (self.tune, step) if step < self.tune.steps else (self.drop, step - self.tune.steps)


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
            state[_short(name)] = tensor.detach()
        return {k: v.to(torch.float16).contiguous() for k, v in state.items()}

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an adapter that `adapter` wrote; its projector takes raw features, so whitening is undone."""
        self.mean.zero_()
        self.std.fill_(1)
        for name, parameter in self.projector.named_parameters(prefix="projector"):
            parameter.copy_(state[name])
        for name, parameter in self.lora.items():
            parameter.copy_(state[_short(name)])


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.model.").replace(".default.weight", "")


def _pixels(scene: Scene) -> Tensor:
    flat = torch.frombuffer(bytearray(scene.image.tobytes()), dtype=torch.uint8)
    return flat.view(scenes.SIZE, scenes.SIZE, 3).permute(2, 0, 1).float() / 255


# --- packing --------------------------------------------------------------------------------------


def sample_questions(scene: Scene, stage: Stage) -> list[scenes.Question]:
    """A mix of kinds, so that yes/no questions do not crowd out the rest."""
    left, chosen = ASKED_AT_MOST | {"yes/no": stage.yes_no, "color": stage.colors}, []
    for question in scene.questions():
        if left[question.kind]:
            left[question.kind] -= 1
            chosen.append(question)
    return chosen


class Packed(NamedTuple):
    """Every row of a scene and its questions, and the kinds of the questions.

    `block` is the number of the question (0: shared prefix), `source` what the row is part of (`IMAGE`, `QUESTION` or
    0), `hidden` which of those it does not see (their sum).
    """

    ids: list[int]
    positions: list[int]
    block: list[int]
    labels: list[int]
    source: list[int]
    hidden: list[int]
    kinds: list[str]


def pack(learner: Learner, scene: Scene, stage: Stage) -> Packed:
    """The scene with its questions; what is hidden from each is drawn from the scene's seed."""
    rng = random.Random(f"hide:{scene.seed}")
    before, after = PROMPT.split("{image}")
    first = learner.ids(before)
    shared = len(first) + GRID**2
    source = [0] * len(first) + [IMAGE] * GRID**2
    row = Packed(first + [0] * GRID**2, list(range(shared)), [0] * shared, [IGNORED] * shared, source, [0] * shared, [])
    for number, question in enumerate(sample_questions(scene, stage), 1):
        asked, is_question = _asked(learner, after, question.text)
        answer = learner.ids(question.answer + END)
        length = len(asked) + len(answer)
        row.ids.extend(asked + answer)
        row.positions.extend(range(shared, shared + length))
        row.block.extend([number] * length)
        row.labels.extend([IGNORED] * len(asked) + answer)
        row.source.extend([QUESTION * i for i in is_question] + [0] * len(answer))
        row.hidden.extend([_hidden(rng, stage)] * length)
        row.kinds.append(question.kind)
    return row


def _hidden(rng: random.Random, stage: Stage) -> int:
    return QUESTION * (rng.random() < stage.hidden_question) + IMAGE * (rng.random() < stage.hidden_image)


def _asked(learner: Learner, template: str, question: str) -> tuple[list[int], list[bool]]:
    """Tokens of a question in its template, and which of them are the question's own."""
    start = template.index("{question}")
    found = learner.tokenizer(template.format(question=question), add_special_tokens=False, return_offsets_mapping=True)
    inside = [start <= a < start + len(question) for a, _ in found.offset_mapping]
    return found.input_ids, inside


def collate(learner: Learner, batch: Sequence[Scene], stage: Stage) -> Batch:
    packed = [pack(learner, scene, stage) for scene in batch]
    length = max(len(row.ids) for row in packed)
    ids, positions, block, labels, source, hidden = (
        torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in packed])
        for i, fill in enumerate((0, 0, -1, IGNORED, 0, 0))
    )
    same = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    shown = (source[:, None, :] & hidden[:, :, None]) == 0
    see = torch.tril(torch.ones(length, length, dtype=torch.bool)) & same & shown
    return Batch(learner.features(batch), ids, positions, labels, see[:, None], [row.kinds for row in packed])


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
    first = scenes.TRAINING_SEEDS.start * (2 + settings.seed) + step * settings.tune.scenes
    return list(scenes.make_scenes(settings.at(step)[0].scenes, first))


def answer_logits(learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the rows that predict an answer token `[answer token, vocabulary]`, and those tokens."""
    labels = batch.labels[:, 1:]
    on = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16()):
        states = learner.hidden(batch)[:, :-1][on]
        return learner.language.get_base_model().lm_head(states).float(), labels[on]


@functools.cache
def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; where it is emulated, a step takes minutes."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def tune_step(learner: Learner, optimizer: torch.optim.Optimizer, step: int, settings: Settings) -> float:
    stage, done = settings.at(step)
    scale = min(1.0, (done + 1) / settings.warmup) * max(settings.final_rate, 1 - done / stage.steps)
    for group, rate in zip(optimizer.param_groups, (stage.projector_rate, stage.lora_rate), strict=True):
        group["lr"] = rate * scale
    batch = collate(learner, step_scenes(step, settings), stage)
    logits, labels = answer_logits(learner, batch)
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
        batch = collate(learner, list(scenes.make_scenes(16, first)), settings.tune)
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
        if (step + 1) % settings.evaluate_every == 0 or step + 1 in (settings.tune.steps, settings.steps):
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
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--tuned", type=Path, help="an adapter that is tuned already: begin with the last stage")
    options = parser.parse_args(arguments)
    settings = Settings(seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    torch.manual_seed(settings.seed)
    learner = Learner()
    if not (options.out / "checkpoint.safetensors").exists():
        if options.tuned:
            learner.load_adapter(load_file(options.tuned))
        else:
            align(learner, settings)
        named = {**dict(learner.projector.named_parameters(prefix="projector")), **learner.lora}
        done = settings.tune.steps if options.tuned else 0
        checkpoint(learner, torch.optim.AdamW(learner.parameters()), named, done, options.out)
    tune(learner, settings, options.out)
    save_file(learner.adapter(), options.out / "adapter.safetensors")
    print(f"wrote {options.out / 'adapter.safetensors'}")


if __name__ == "__main__":
    main()
