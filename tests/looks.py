"""Where things stand in a drawn figure: boxes of its texts and panels, in pixels, as the renderer has them."""

import itertools

from matplotlib.transforms import Bbox


def laid_out(ax):
    """The figure of some Axes, drawn once, so that its layout is done."""
    figure = ax.figure.figure
    figure.draw_without_rendering()
    return figure


def texts(figure):
    """Every text that is seen, and its box."""
    renderer = figure._get_renderer()
    axes = [one for ax in figure.axes for one in (ax, *ax.child_axes)]
    found = [*figure.texts, *(text for ax in axes for text in _shown(ax))]
    seen = [text for text in dict.fromkeys(found) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in seen]


def _shown(ax):
    """Texts of Axes; of ticks, only those that are drawn."""
    labels = []
    for axis in (ax.xaxis, ax.yaxis):
        ticks = axis._update_ticks()
        labels += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        labels.append(axis.label)
    legend = ax.get_legend()
    return [*labels, *ax.texts, ax.title, ax._left_title, ax._right_title, *(legend.get_texts() if legend else [])]


def smaller(box, by=1.0):
    return Bbox.from_extents(box.x0 + by, box.y0 + by, box.x1 - by, box.y1 - by)


def overlaps(figure):
    """Pairs of texts that stand on each other; rotated ones by the box around them."""
    return [
        (a, b) for (a, one), (b, two) in itertools.combinations(texts(figure), 2) if smaller(one).overlaps(smaller(two))
    ]


def cut(figure):
    """Texts that reach beyond the figure."""
    page = figure.bbox
    return [
        text
        for text, box in texts(figure)
        if box.x0 < page.x0 - 1 or box.y0 < page.y0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]


def size(ax):
    """Width and height of Axes as they are drawn."""
    box = ax.get_window_extent()
    return box.width, box.height
