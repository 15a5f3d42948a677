"""An answer while it was written: along its tokens, and inside."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from lvlm_interp.errors import InputError
from lvlm_interp.generation.traced import Trace
from lvlm_interp.generation.watched import Watched
from lvlm_interp.report.figures import coloring, drawing, lettering
from lvlm_interp.report.figures.drawing import figure

LONGEST = 14  # letters of a token
Quantity = Literal["delta_nats", "delta", "kl", "jensen_shannon", "hellinger", "rank"]
SAID = {
    "delta_nats": "with − without, nats",
    "delta": "with − without, raw logits",
    "kl": "KL(with ‖ without), nats",
    "jensen_shannon": "Jensen–Shannon, nats",
    "hellinger": "Hellinger distance",
    "rank": "likelier tokens without",
}


@figure
def trace_lines(
    trace: Trace, quantity: Quantity = "delta_nats", ax: Axes | None = None, *, title: str | None = None
) -> Axes:
    """A line for each stream along the answer's tokens.

    Args:
        trace: from `trace`.
        quantity: what is drawn: `delta_nats`, `delta`, `kl`, `jensen_shannon`, `hellinger`, `rank`.
        ax: where to draw.
        title: another title.

    Raises:
        InputError: another quantity, or an answer without tokens.
    """
    if quantity not in get_args(Quantity):
        raise InputError(f"quantity is one of {list(get_args(Quantity))}; got {quantity!r}")
    _need_tokens(trace.tokens)
    ax = _wide(ax, len(trace.tokens), 2.8)
    ax.axhline(0, linewidth=0.8, color=drawing.ink(ax), alpha=0.4)
    for name, numbers in zip(trace.streams, getattr(trace, quantity), strict=True):
        ax.plot(range(len(trace.tokens)), numbers, marker="o", markersize=3, label=f"without: {name}")
    _tokens(ax, trace.tokens)
    ax.set_ylabel(SAID[quantity])
    drawing.title(ax, title or "What each token owes to the image, as it was written")
    ax.legend(frameon=False)
    drawing.quiet(ax)
    return ax


@figure
def trace_layers(
    watched: Watched,
    what: str = "image",
    ax: Axes | None = None,
    *,
    cmap: str | Colormap | None = None,
    title: str | None = None,
) -> Axes:
    """A map of layers by tokens: attention to a group, what the lens reads, or how far heads are from another stream's.

    Args:
        watched: from `trace(…, inside=True).inside`.
        what: a group (`image`, `sinks`, `question`, …); `lens`; or a stream, whose heads' mean is drawn.
        ax: where to draw.
        cmap: another colour map.
        title: another title.

    Raises:
        InputError: nothing is called so, or another colour map.
    """
    _need_tokens(watched.tokens)
    known = {name: (watched.attention[:, n], "share of attention") for n, name in enumerate(watched.groups)}
    known["lens"] = watched.lens, "probability of the token"
    known |= {n: (watched.vision_heads[i].nanmean(1), "mean of ‖z − z'‖") for i, n in enumerate(watched.streams)}
    if what not in known:
        raise InputError(f"what is drawn is one of {list(known)}; got {what!r}")
    numbers, unit = known[what]
    ax = _wide(ax, len(watched.tokens), 1.4 + drawing.high(len(numbers), 0.16))
    image = ax.imshow(numbers.numpy(), cmap=coloring.colors(cmap), aspect="auto", origin="lower")
    _tokens(ax, watched.tokens)
    ax.set_ylabel("layer")
    drawing.title(ax, title or f"{what}, token by token")
    drawing.quiet(ax)
    coloring.color_bar(ax, image, unit)
    return ax


def _need_tokens(tokens: tuple[str, ...]) -> None:
    if not tokens:
        raise InputError("the answer has no tokens to draw")


def _wide(ax: Axes | None, tokens: int, height: float) -> Axes:
    return drawing.axes(ax, float(np.clip(2.4 + 0.3 * tokens, 4.0, 10.0)), height)


def _tokens(ax: Axes, tokens: tuple[str, ...]) -> None:
    """Upright, so that they have room beside each other however long they are."""
    every = lettering.step(len(tokens), ax, "width")
    shown = [lettering.token_text(token, LONGEST) for token in tokens[::every]]
    ax.set_xticks(range(0, len(tokens), every), shown, rotation=90)
