"""Stage 1: each patch is regressed onto the input embedding of the word that it shows; only the projector learns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lvlm_interp.reference import scenes
from lvlm_interp.reference.architecture import PATCH, TEXT_WIDTH
from lvlm_interp.reference.learner import GRID, Learner, Settings
from lvlm_interp.reference.scenes import Scene


def patch_targets(learner: Learner, scene: Scene) -> tuple[Tensor, Tensor]:
    """The embedding that each patch should land on `[patch, width]`, and its weight `[patch]`."""

    def word(text: str) -> Tensor:
        return learner.embeddings[learner.ids(" " + text)].mean(0)

    target, weight = torch.zeros(GRID, GRID, TEXT_WIDTH), torch.full((GRID, GRID), 0.15)
    target += word("background")
    for item in scene.items:
        shown = word(item.shown) + (0.7 * word(item.color) if item.color else 0)
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
