"""Ways to choose, for transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from lvlm_interp.counterfactuals.counterfactual import Counterfactual
from lvlm_interp.engine.lockstep import Lockstep, lockstep
from lvlm_interp.errors import InputError
from lvlm_interp.generation.choosing import Changing, Step
from lvlm_interp.generation.streams import named_all, streams_of
from lvlm_interp.given import explaining
from lvlm_interp.inputs.example import Inputs
from lvlm_interp.model.vlm import HookedVLM


@explaining
class ChangedLogits(LogitsProcessor):
    """Changes the logits of `model.generate` as `li.trace` does: `logits_processor=[ChangedLogits(vlm, x, …)]`.

    The other streams read along, each with its own keys and values; what is asked of earlier layers is read off a
    stream of its own that sees everything. How a token is then taken is `generate`'s own affair.

    Promise: where `generate` is greedy, the tokens that `li.trace` writes.
    """

    def __init__(
        self,
        vlm: HookedVLM,
        x: Inputs,
        changing: Changing,
        without: str | Counterfactual | Sequence[str | Counterfactual] = "hidden",
        *,
        max_new_tokens: int = 128,
        seed: int = 0,
    ) -> None:
        """For one example.

        Args:
            vlm: the model whose `model.generate` is called.
            x: what it is called with, `model.generate(**x.prompt.model_inputs, …)`.
            changing: how logits are changed.
            without: what the other streams go without, as in `li.trace`.
            max_new_tokens: how many tokens it may be asked for.
            seed: of what is drawn in counterfactuals.

        Raises:
            InputError: no image, or a counterfactual that is not known or stands twice.
        """
        x.need_image()
        self.vlm, self.changing, self._most = vlm, changing, max_new_tokens
        self._prompt, self._layers = x.prompt, changing.layers_of(vlm.depth)
        streams = streams_of(vlm, x.prompt, named_all(without), seed)
        self._streams = streams if self._layers else streams[1:]
        self._running: Lockstep | None = None
        self._start, self._ids = 0, list[int]()

    @torch.no_grad()
    def __call__(
        self, input_ids: Int[Tensor, "batch written"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """The changed logits.

        Raises:
            InputError: several examples or beams, another prompt than that of `x`, or more tokens than were told of.
        """
        if len(input_ids) != 1:
            raise InputError(f"one example and one beam at a time; generate asks for {len(input_ids)}")
        states = self._states(input_ids[0].tolist())
        others = self.vlm.readout.logits(states).float().to(scores.device)
        layers = {n: self.vlm.readout(state).float() for n, state in self._running.behind.items()}  # type: ignore[union-attr]
        logits = torch.cat([scores.float(), others[1:] if self._layers else others])
        return self.changing.changed(Step(logits, tuple(self._ids), layers))[None].to(scores.dtype)

    def _states(self, written: list[int]) -> Float[Tensor, "stream width"]:
        """Those of the other streams, one token further than the last time, or from the beginning."""
        new = written[self._start :]
        if self._running is not None and len(new) == len(self._ids) + 1 and new[:-1] == self._ids:
            self._ids.append(new[-1])
            if len(self._ids) >= self._most:
                raise InputError(
                    f"generate writes more than max_new_tokens={self._most}, which the streams were made for"
                )
            return self._running.step(new[-1])
        self._need_prompt(written)
        self._start, self._ids = len(written), []
        self._running = lockstep(self.vlm, self._streams, self._most, self._layers)
        return self._running.begin()

    def _need_prompt(self, written: list[int]) -> None:
        """Some families are called with embeddings alone, and then nothing tells what the prompt was."""
        if written and written != self._prompt.input_ids[0].tolist():
            raise InputError(
                "generate was given another prompt than the example's: call it with **x.prompt.model_inputs, and make "
                "another ChangedLogits for another example"
            )
