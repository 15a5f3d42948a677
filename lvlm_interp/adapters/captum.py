"""Captum's methods on our functions: its own wrappers of language models lose the image.

players = {"image": x.where("image"), "question": x.where("question")}
found = captum_attribution(vlm, x, players, "ShapleyValueSampling", n_samples=50)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.engine.decoder import run_to_decoder
from lvlm_interp.engine.score import Scores, score
from lvlm_interp.errors import InputError
from lvlm_interp.given import explained
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM

METHODS = ("FeatureAblation", "ShapleyValueSampling", "ShapleyValues")
GRADIENTS = ("Saliency", "InputXGradient", "IntegratedGradients")
Value = Callable[[Scores], Float[Tensor, "coalition answer"]]


@explained
def log_odds(scores: Scores) -> Float[Tensor, "coalition answer"]:
    """What is explained by default: nats of log-odds of every answer token."""
    return scores.logodds


@explained
def captum_forward(
    vlm: HookedVLM, x: Inputs, players: Mapping[str, Bool[Tensor, " position"]], value: Value = log_odds
) -> Callable[[Tensor], Float[Tensor, "coalition answer"]]:
    """A forward function for captum: which players are seen → a value of every answer token.

    Args:
        vlm: the model.
        x: an example with an answer.
        players: name → its positions; what belongs to no player is always seen.
        value: what of the scores is explained.

    Returns:
        A function of rows `[coalition, player]`, one column a player in their order, 1 where it is seen and 0 where it
        is hidden. Captum's `target` chooses the answer token. A coalition is scored once, however often it is asked.

    Raises:
        InputError: there is no answer, or no player.
    """
    x.need_answer()
    if not players:
        raise InputError("no players were given: name at least one, with its positions")
    decoder_inputs, members = run_to_decoder(vlm, x), torch.stack([*players.values()])
    known: dict[tuple[bool, ...], Tensor] = {}

    def forward(seen: Tensor) -> Float[Tensor, "coalition answer"]:
        rows = [tuple(row) for row in (seen != 0).tolist()]
        if new := [row for row in dict.fromkeys(rows) if row not in known]:
            visible = ~((~torch.tensor(new)).float() @ members.float() > 0)
            known.update(zip(new, value(score(vlm, x, visible, decoder_inputs=decoder_inputs)), strict=True))
        return torch.stack([known[row] for row in rows])

    return forward


@explained
def captum_attribution(
    vlm: HookedVLM,
    x: Inputs,
    players: Mapping[str, Bool[Tensor, " position"]],
    method: str = "ShapleyValueSampling",
    value: Value = log_odds,
    seed: int = 0,
    **options: Any,
) -> Float[Tensor, "answer player"]:
    """What captum's method gives every player, for every answer token, in the unit of the value.

    Args:
        vlm: the model.
        x: an example with an answer.
        players: name → its positions.
        method: one of captum's perturbation methods, by the name of its class.
        value: what of the scores is explained.
        seed: of what the method draws.
        options: handed to the method's `attribute`, such as `n_samples`.

    Raises:
        InputError: no answer, no player, or another method.
    """
    import captum.attr

    if method not in METHODS:
        raise InputError(f"{method!r} is not one of captum's methods that can be run here: {', '.join(METHODS)}")
    forward = captum_forward(vlm, x, players, value)
    everybody, found = torch.ones(1, len(players)), []
    for token in range(len(x.answer_ids)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            explainer = getattr(captum.attr, method)(forward)
            found.append(explainer.attribute(everybody, baselines=0, target=token, **options)[0])
    return torch.stack(found)


@contextlib.contextmanager
def _finely() -> Iterator[None]:
    """Within the `with` torch's default type is no half: captum makes its steps in it."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(before if before == torch.float64 else torch.float32)
        yield
    finally:
        torch.set_default_dtype(before)


@explained
def captum_gradient(
    forward: Callable[[Tensor], Float[Tensor, "1 part"]],
    leaf: Float[Tensor, 1 * features],
    part: int,
    method: str,
    noise: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    **options: Any,
) -> Float[Tensor, "*features"]:
    """What captum's gradient method gives every feature, for one column of a function.

    Args:
        forward: the function, of one row.
        leaf: where it is differentiated.
        part: which column.
        method: `Saliency`, `InputXGradient` or `IntegratedGradients`.
        noise: SmoothGrad (Smilkov et al. 2017), the deviation of what is added to the leaf; 0 adds nothing.
        samples: how often it is added, the mean is taken.
        seed: of the noise.
        options: handed to the method's `attribute`.

    Raises:
        InputError: another method.
    """
    import captum.attr

    if method not in GRADIENTS:
        raise InputError(f"{method!r} is not one of captum's methods of gradients: {', '.join(GRADIENTS)}")
    with torch.inference_mode(False), _finely():  # whatever is on around: there is to be a graph
        explainer, generator = getattr(captum.attr, method)(forward), torch.Generator().manual_seed(int(seed))
        found = torch.zeros_like(leaf)
        for _ in range(samples if noise else 1):
            # Drawn here, and not by captum's tunnel, whose draws depend on torch's default type.
            drawn = torch.randn(leaf.shape, generator=generator, dtype=torch.float32).to(leaf) * noise
            at = (leaf + drawn if noise else leaf.clone()).detach().requires_grad_()
            found += explainer.attribute(at, target=part, **options).detach()
    return found[0] / (samples if noise else 1)
