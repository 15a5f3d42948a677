"""The lead of a pair's clean answer over its corrupt one, as a graph anywhere on the way between both inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.attribution.value import Target
from lvlm_interp.interventions.tracing import Pair
from lvlm_interp.model.capture import Capture
from lvlm_interp.model.vlm import HookedVLM

EMBEDDED = "hook_embed"


class Leads:
    """Both runs of a pair, and the logit of the clean answer's first token less the corrupt one's.

    Attributes:
        clean, corrupt: the examples, both answered with the clean answer, so that positions are each other's.
        before, after: what clean and corrupt runs have at some sites.
    """

    def __init__(self, vlm: HookedVLM, pair: Pair, target: Target, sites: Sequence[str]) -> None:
        self.vlm, self.clean = vlm, pair[0]
        self.corrupt = pair[1].with_answer(self.clean.answer_ids.tolist(), self.clean.answer_tokens, self.clean.answer)
        self._tokens = [int(self.clean.answer_ids[0]), target.search.ids[0][0][0]]
        with torch.no_grad():
            self.before, self.after = (vlm.capture(x, [EMBEDDED, *sites]) for x in (self.clean, self.corrupt))

    def graph(self, sites: Sequence[str], share: float) -> tuple[Float[Tensor, ""], Capture]:
        """The lead this far on the way from the corrupt inputs to the clean ones, and values that it is made of."""
        corrupt, clean = self.after[EMBEDDED], self.before[EMBEDDED]
        wide = torch.promote_types(clean.dtype, torch.float32)
        start = torch.lerp(corrupt.to(wide), clean.to(wide), share).to(clean.dtype)
        found = self.vlm.capture(self.clean, sites, grad=True, edits={EMBEDDED: lambda value: start.to(value)})
        with torch.inference_mode(False), torch.enable_grad():
            return self.lead(found), found

    def lead(self, run: Capture) -> Float[Tensor, ""]:
        """Of a run, in logits."""
        row = run["logits"][0, self.clean.answer_start - 1].double()
        return row[self._tokens[0]] - row[self._tokens[1]]
