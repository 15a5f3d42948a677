"""What stands behind the last block, where lenses and direct attribution do not run the model but its parts.

They give the final norm and the unembedding rows of their own choice, those of earlier layers too. An edit or a hook
there that goes by position would hit other rows, and what is hooked around them would not run at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from lvlm_interp.errors import ModelError
from lvlm_interp.model.holding import hooks_of_others
from lvlm_interp.model.sites import match
from lvlm_interp.model.vlm import HookedVLM

AFTER = ("_forward_hooks",)


def need_plain_end(vlm: HookedVLM, method: str) -> None:
    """Raise where something changes what the model makes of its last block.

    Raises:
        ModelError: names the site that is edited, or the module that is hooked.
        SiteError: the final norm stands elsewhere too.
    """
    named = dict(vlm.model.named_modules())
    (last,) = match(vlm.sites, "ln_final.hook_out", vlm.missing)
    inside, around = _ends(vlm), _around(named, (last.module, vlm.readout.unembed))
    inside -= {*around.values()}
    edited = [f"{site.name!r} is edited" for site, _ in vlm.held.edited if site.module in inside]
    own = ((name, module) for name, module in named.items() if module in inside)
    hooked = [*hooks_of_others(own), *hooks_of_others(around.items(), AFTER)]
    changed = [*edited, *(f"there is a hook of your own on {name or type(vlm.model).__name__!r}" for name in hooked)]
    if changed:
        raise ModelError(
            f"{changed[0]}, behind the last block: {method} gives the final norm and the unembedding rows of its own "
            "choice, of which what changes there knows nothing. Change what the last block gives, "
            f"'blocks.{vlm.depth - 1}.hook_resid_post'; vlm.run and vlm.capture give the model's own logits as it is"
        )


def _ends(vlm: HookedVLM) -> set[nn.Module]:
    """The modules that the readout runs; where it runs the decoder's own code, blocks and embeddings are left out."""
    blocks = {module for block in vlm.blocks for module in block.modules()}
    ends = (*vlm.readout.norm.modules(), *vlm.readout.unembed.modules())
    return {module for module in ends if module not in blocks and not isinstance(module, nn.Embedding)}


def _around(named: Mapping[str, nn.Module], parts: Collection[nn.Module]) -> dict[str, nn.Module]:
    """The modules that hold one of these parts, and so end behind it."""
    paths = [name for name, module in named.items() if any(module is part for part in parts)]
    above = {".".join(path.split(".")[:n]) for path in paths for n in range(path.count(".") + 1)}
    return {name: named[name] for name in named if name in above}
