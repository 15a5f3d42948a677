"""Figures of what layers and heads hold: lenses, direct attribution, probes. As in `figures`: results in, Axes out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.view import ImageView
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.inside.lens import Lens
from lvlm_interp.probes.result import ProbeResult
from lvlm_interp.report.figures import INK, _axes, _quiet, diverging, literal
from lvlm_interp.report.palette import OPPOSES, SUPPORTS
from lvlm_interp.report.pictures import faded

SEQUENTIAL = "YlGnBu"
DARK = 0.55  # of that scale; what is written on darker cells is white
FEW_CELLS = 600  # with more, words in cells would not be read


def lens_grid(found: Lens, ax: Axes | None = None, *, words: bool | None = None, title: str | None = None) -> Axes:
    """Layers × positions: the likeliest word in each cell, coloured by its probability; the last layer on top.

    Args:
        found: from `lens`.
        ax: where to draw.
        words: write the words; by default where there are at most 600 cells.
        title: by default what is shown.
    """
    layers, positions = found.entropy.shape
    ax = _axes(ax, 1.2 + 0.55 * positions, 0.9 + 0.24 * layers)
    chance = found.top_logprobs[..., 0].exp().numpy()
    image = ax.imshow(chance, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", origin="lower")
    if words if words is not None else layers * positions <= FEW_CELLS:
        for (row, column), p in np.ndenumerate(chance):
            word = literal(found.top_words[row][column][0].strip()[:9] or "⏎")
            color = "white" if p > DARK else INK
            ax.text(column, row, word, ha="center", va="center", fontsize=6.5, color=color)
    ax.set_xticks(range(positions), [literal(t.strip() or "⏎") for t in found.tokens], rotation=60, ha="right")
    every = max(1, layers // 16)
    ax.set_yticks(range(0, layers, every), [str(n) for n in found.layers[::every]])
    ax.set(xlabel="token at the position", ylabel="after n blocks")
    ax.set_title(title or "Likeliest next word after each layer", fontsize=11, color=INK, loc="left")
    _quiet(ax)
    _bar(ax, image, "probability")
    return ax


def word_map(
    found: Lens,
    view: ImageView,
    layer: int = -1,
    target: str | None = None,
    picture: Image.Image | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """One layer of a lens over the picture: each patch its likeliest word, or the probability of a target.

    Args:
        found: from `lens`, with the positions of this image.
        view: the image, `x.images[k]`.
        layer: which of `found.layers`, counted from their end if negative.
        target: a target of the lens: a heatmap of its probability in the place of words.
        picture: the original image; the view's own by default.
        ax: where to draw.
        title: by default what is shown.

    Raises:
        InputError: the image's tokens have no place that is known, or were not read by this lens; no such layer; a
            picture of another size.
    """
    if view.cells is None:
        raise InputError(view.no_grid)
    if view.patches is None or view.picture is None:
        raise InputError("the original picture is not known; prepare the example with it")
    if picture is not None and picture.size != view.picture.size:
        raise InputError(f"the lens read an image of {view.picture.size} pixels, this picture has {picture.size}")
    if not -len(found.layers) <= layer < len(found.layers):
        raise InputError(f"no layer number {layer} of the {len(found.layers)} that this lens read, {found.layers}")
    cells = view.cells.flatten().tolist()
    at = {p: n for n, p in enumerate(found.positions.tolist())}
    wanted = [int(view.positions[cell]) for cell in cells]
    if missing := [p for p in wanted if p not in at]:
        raise InputError(f"this lens did not read position {missing[0]} of the image; use positions='image'")
    rows, columns = [at[p] for p in wanted], view.cells.shape[1]
    number = found.layers[layer]
    ax = _axes(ax, 4.8, 4.6)
    boxes = [box for cell in cells if (box := view.patches[cell]) is not None]
    _pale(ax, picture or view.picture, boxes)
    index = found.layers.index(number)
    scores = found.of(target)[index] if target else found.top_logprobs[index, :, 0]
    chance = scores[rows].exp().tolist()
    scale = Normalize(0, max(0.05, max(chance)))
    color = ScalarMappable(scale, SEQUENTIAL)
    for box, p, row in zip(boxes, chance, rows, strict=True):
        left, top, right, bottom = box
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, color=color.to_rgba(p, alpha=0.75), lw=0))
        if target is None:
            word = literal(found.top_words[index][row][0].strip()[:9] or "⏎")
            size = min(7.0, 64 / columns)
            ax.text((left + right) / 2, (top + bottom) / 2, word, ha="center", va="center", fontsize=size, color=INK)
    shown = f"probability of “{target}”" if target else "likeliest word of each patch"
    ax.set_title(literal(title or f"{shown}, after {number} blocks"), fontsize=11, color=INK, loc="left")
    ax.set(xlabel="pixels of the original image", aspect="equal")
    _quiet(ax)
    _bar(ax, color, "probability")
    return ax


def component_bars(
    found: DirectAttribution, token: int = 0, most: int = 15, ax: Axes | None = None, *, title: str | None = None
) -> Axes:
    """The largest parts of one answer token's logit, and the sum of the rest; together they are the logit.

    Args:
        found: from `direct`.
        token: which answer token, from 0.
        most: how many components are shown one by one.
        ax: where to draw.
        title: names the token by default.
    """
    _need_token(found.tokens, token)
    frame = found.components(token)
    names = [*frame["component"][:most], f"the other {max(0, len(frame) - most)}"]
    values = np.array([*frame["logit"][:most], frame["logit"][most:].sum()])
    ax = _axes(ax, 6.4, 1.2 + 0.26 * len(names))
    ax.barh(np.arange(len(names)), values, height=0.65, color=np.where(values >= 0, SUPPORTS, OPPOSES))
    ax.set_yticks(np.arange(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_xlabel("raw logits; all parts add up to the logit")
    ax.set_title(_named(found, token, title, "What wrote"), fontsize=11, color=INK, loc="left")
    _quiet(ax)
    return ax


def head_sources(found: DirectAttribution, token: int = 0, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Layers × roles: what all heads of a layer read from each role, in raw logits.

    Args:
        found: from `direct`.
        token: which answer token, from 0.
        ax: where to draw.
        title: names the token by default.
    """
    _need_token(found.tokens, token)
    return _layers_by(found.by_role()[token].sum(1).numpy(), found.role_names, found, token, ax, title, "read from")


def head_map(
    found: DirectAttribution,
    token: int = 0,
    role: str | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """Layers × heads: what each head wrote for one answer token, or what of it was read from one role.

    Args:
        found: from `direct`.
        token: which answer token, from 0.
        role: only what was read from this role.
        ax: where to draw.
        title: names the token by default.
    """
    _need_token(found.tokens, token)
    if role is not None and role not in found.role_names:
        raise InputError(f"no role {role!r} in this prompt; it has {list(found.role_names)}")
    values = found.heads[token] if role is None else found.by_role()[token, ..., found.role_names.index(role)]
    names = [str(n) for n in range(values.shape[1])]
    what = "head by head" if role is None else f"read from {role}"
    return _layers_by(values.numpy(), names, found, token, ax, title, what)


def probe_map(
    found: ProbeResult, metric: str | None = None, ax: Axes | None = None, *, title: str | None = None
) -> Axes:
    """Layers × heads: what can be decoded at each, with a dot where it is more than chance.

    Args:
        found: from `fit_probes`, its sites given as `[layer, head]`; one row of sites is drawn as one column.
        metric: one of `found.metrics`, the first by default; or `selectivity`.
        ax: where to draw.
        title: names the metric by default.
    """
    name = metric or found.metrics[0]
    scores = found.selectivity.view(found.site_shape) if name == "selectivity" else found.of(name)
    values = scores.reshape(len(scores), -1).numpy()
    ax = _axes(ax, 2.2 + 0.36 * values.shape[1], 1.4 + 0.16 * len(values))
    floor = 0.0 if name == "selectivity" else float(found.baseline[found.metrics.index(name)])
    scale = Normalize(min(floor, float(np.nanmin(values))), max(floor + 1e-6, float(np.nanmax(values))))
    image = ax.imshow(values, cmap=SEQUENTIAL, norm=scale, aspect="auto", origin="lower")
    rows, columns = found.significant.view(values.shape).numpy().nonzero()
    dots = ["white" if dark else INK for dark in scale(values)[rows, columns] > DARK]
    ax.scatter(columns, rows, s=5, color=dots, linewidths=0, label=f"q ≤ {found.alpha:g}")
    ax.set_xticks(range(values.shape[1]))
    numbers, unit = _rows_of(found, len(values))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda row, _: str(numbers[int(row)]) if 0 <= row < len(numbers) else "")
    ax.set(xlabel="head" if values.shape[1] > 1 else "", ylabel=unit)
    ax.set_title(literal(title or f"{_plain(name)} of held-out probes (• q ≤ {found.alpha:g})"), fontsize=11, color=INK)
    _quiet(ax)
    _bar(ax, image, _plain(name) + (", pixels" if name == "pixel_error" else ""))
    return ax


def probe_layers(
    found: Mapping[str, ProbeResult],
    metric: str | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """One line for each result over its sites in order: a score with its interval, and dotted what guessing gets.

    Args:
        found: name → result of `fit_probes`, each with one site for each layer.
        metric: a metric of all of them, the first by default; or `selectivity`, which has no interval.
        ax: where to draw.
        title: names the metric by default.

    Raises:
        InputError: no results.
    """
    if not found:
        raise InputError("no results to draw")
    ax = _axes(ax, 6.4, 3.6)
    name = metric or next(iter(found.values())).metrics[0]
    for number, (label, result) in enumerate(found.items()):
        (layers, unit), color = _rows_of(result, len(result.sites)), f"C{number}"
        if name == "selectivity":
            ax.plot(layers, result.selectivity, color=color, label=label)
            continue
        row = result.metrics.index(name)
        ax.plot(layers, result.values[row], color=color, label=label)
        ax.fill_between(layers, result.low[row], result.high[row], color=color, alpha=0.2, linewidth=0)
        ax.axhline(float(result.baseline[row]), color=color, linestyle=":", linewidth=0.9)
    ax.set(xlabel=unit, ylabel=_plain(name) + (", pixels" if name == "pixel_error" else ""))
    ax.set_title(
        title or f"{_plain(name).capitalize()} of probes on held-out examples", fontsize=11, color=INK, loc="left"
    )
    ax.legend(frameon=False, fontsize=9)
    _quiet(ax)
    return ax


def _rows_of(found: ProbeResult, count: int) -> tuple[list[int], str]:
    """The numbers of the blocks that rows of sites are in, where their names tell; else the rows' own."""
    firsts = found.sites[:: len(found.sites) // count]
    blocks = [int(told[1]) for name in firsts if (told := re.search(r"\bblocks\.(\d+)\.", name))]
    return (blocks, "block") if len(blocks) == len({*blocks}) == count else (list(range(count)), "site")


def _plain(metric: str) -> str:
    return metric.replace("_", " ")


def _layers_by(
    values: np.ndarray,
    names: Sequence[str],
    found: DirectAttribution,
    token: int,
    ax: Axes | None,
    title: str | None,
    what: str,
) -> Axes:
    ax = _axes(ax, 2.2 + 0.42 * len(names), 1.4 + 0.16 * len(values))
    largest = max(1e-6, float(np.abs(values).max()))
    image = ax.imshow(values, cmap=diverging(), norm=Normalize(-largest, largest), aspect="auto", origin="lower")
    ax.set_xticks(range(len(names)), names, rotation=0 if len(names[0]) < 3 else 45, ha="right")
    ax.set_ylabel("block", fontsize=9, color=INK)
    ax.set_title(_named(found, token, title, what), fontsize=11, color=INK, loc="left")
    _quiet(ax)
    _bar(ax, image, "raw logits")
    return ax


def _named(found: DirectAttribution, token: int, title: str | None, what: str) -> str:
    against = f" against “{found.against.strip()}”" if found.against else ""
    return literal(title or f"“{found.target[token].strip()}”{against}, {what.lower()}")


def _need_token(tokens: Sequence[str], token: int) -> None:
    if not -len(tokens) <= token < len(tokens):
        raise InputError(f"no answer token {token}: there are {len(tokens)}, counted from 0")


def _pale(ax: Axes, picture: Image.Image | None, boxes: Sequence[tuple[float, float, float, float]]) -> None:
    width, height = picture.size if picture else (max(b[2] for b in boxes), max(b[3] for b in boxes))
    if picture is not None:
        ax.imshow(faded(picture, 0.55), extent=(0, width, height, 0), interpolation="antialiased")
    ax.set(xlim=(0, width), ylim=(height, 0))


def _bar(ax: Axes, image: ScalarMappable, label: str) -> None:
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
