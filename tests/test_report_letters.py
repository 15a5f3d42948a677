"""Figures in small and in large letters: all that is written stands on the page, and what is drawn keeps its room."""

import functools

import matplotlib as mpl
import pytest
import torch
from matplotlib import style
from matplotlib.figure import Figure

import lvlm_interp as li
from lvlm_interp.heatmaps.faithfulness import Faithfulness
from lvlm_interp.heatmaps.joint_effects import JointEffects
from lvlm_interp.report import export, figures
from lvlm_interp.report.figures import drawing
from tests.looks import cut, laid_out, overlaps, size
from tests.made import about, made
from tests.probing import QUICK, labelled
from tests.test_judging import worlds
from tests.test_report_looks import LONG, a_lens, a_map, a_view, heads

LETTERS = (6, 10, 24)
LEAST = 4.0  # ems that axes are high and wide at least


@functools.cache
def probes(layers, across, dim=5):
    features, labels = labelled(sites=layers * across, dim=dim, holds=(1,))
    sites = [f"blocks.{n // across}.attn.hook_z.{n % across}" for n in range(layers * across)]
    return li.fit_probes(features.view(120, layers, across, dim), labels, sites=sites, **QUICK)


def curves(maps):
    """Of several maps."""
    steps, drawn = torch.linspace(0, 1, 9).expand(maps + 1, 9), torch.linspace(-3, 5, 9).expand(maps + 1, 1, 9)
    names = tuple(f"integrated_gradients {n}" for n in range(maps))
    return Faithfulness(
        token="Purple",
        maps=(*names, "centre"),
        substrates=("mean",),
        numbers=torch.zeros(maps + 1, 8),
        revealed=steps,
        insertion=drawn,
        deletion=drawn.flip(-1),
        random_insertion=torch.ones(3, 1),
        random_deletion=torch.ones(3, 1),
        sensitivity=torch.zeros(maps + 1, 1),
        value="logodds",
        unit="nats",
        provenance=about("faithfulness"),
    )


def joined(count):
    """Effects of regions and words."""
    names = tuple(f"region {n}" if n < count // 2 else f"a rather long phrase {n}" for n in range(count))
    kinds = tuple("image" if n < count // 2 else "text" for n in range(count))
    dividends = torch.linspace(-1, 1, 1 << count, dtype=torch.float64)[None]
    regions = torch.arange(count // 2)[None]
    settings = {"value": "odds", "unit": "nats", "hide_from": "text", "provenance": about("interactions")}
    return JointEffects(("Purple",), names, kinds, names, regions, dividends, dividends.sum(1), **settings)


def swept(axes, labels):
    """The change of one part under each of some interventions."""
    count = len(labels)
    values, idle = torch.linspace(-9, 3, count)[:, None], ((),)
    settings = {"value": "difference", "unit": "nats", "alternatives": idle, "share": 0.5}
    told = (torch.zeros(1), values, torch.ones(count, 2), torch.ones(count, dtype=torch.long))
    return li.Sweep(axes, labels, ("Purple",), *told, **settings, provenance=about("sweep"))


def routed(routes, layers):
    """What answers lose where routes are cut."""
    change = -torch.rand(len(routes), 3, 1, layers, generator=torch.Generator().manual_seed(0))
    told = (change, change - 0.1, change + 0.1, torch.ones(change.shape, dtype=torch.long), -0.1, 200)
    names = (routes, ("route", "equal size", "equal mass"), (9,), tuple(range(layers)))
    return li.Routes(*names, *told, "logprob", "nats", 0.95, provenance=about("attention_routes"))


def traced(axes, labels):
    """Shares of a difference that places carry."""
    share = torch.linspace(-0.5, 1, 2 * len(labels)).view(1, 2, -1)
    told = (share, share - 0.1, share + 0.1, torch.ones(1), torch.zeros(1), 40, ("nats",), 0.95)
    return li.Tracing(("difference",), ("denoising", "noising"), axes, labels, *told, provenance=about("causal_trace"))


def pushed(alphas, random):
    """What pushes do."""
    mean = torch.linspace(-3, 4, len(alphas))
    told = (mean, mean - 0.5, mean + 0.5, torch.randn(random, len(alphas)), mean.abs(), mean.sigmoid())
    return li.DoseResponse(alphas, *told, 40, "difference", "nats", 0.95, provenance=about("dose_response"))


def written(tokens):
    """An answer as it was written beside two streams."""
    step, both = torch.linspace(0.1, 1, len(tokens)), torch.linspace(0.1, 0.6, 2 * len(tokens)).view(2, -1)
    of_steps = {"logit": step, "logprob": -step, "entropy": step}
    names = ("delta", "delta_nats", "kl", "jensen_shannon", "hellinger", "entropy_without")
    return li.Trace(
        "".join(tokens),
        tokens,
        torch.arange(len(tokens)),
        True,
        ("hidden", "noise"),
        **of_steps,
        **dict.fromkeys(names, both),
        rank=torch.ones(both.shape, dtype=torch.long),
        provenance=about("trace"),
    )


def inside(tokens, layers):
    """What was inside meanwhile."""
    looked, heads = torch.rand(layers, 2, len(tokens)) / 2, torch.ones(1, layers, 2, len(tokens))
    told = (tokens, ("image", "sinks"), looked, ("hidden",), heads, looked[:, 0], {})
    return li.Watched(*told, provenance=about("watched"))


def edged(layers):
    """What goes from each layer's head and MLP to each later one."""
    senders = ("embed", *(f"L{n}{of}" for n in range(layers) for of in ("H0", " MLP")))
    receivers = (*(f"L{n}{of}" for n in range(layers) for of in ("H0 q", "KV0 k", " MLP")), "logits")
    score = torch.linspace(-1, 1, len(receivers) * len(senders)).view(len(receivers), -1)
    return li.Edges(senders, receivers, score, score.sum(1), 8.0, -3.0, 12, provenance=about("edge_attribution"))


def kept(orders, sizes):
    """Faithfulness of the first components of some orders."""
    share = torch.rand(len(orders), len(sizes), generator=torch.Generator().manual_seed(0))
    told = (torch.ones(len(sizes), dtype=torch.long), share, share - 0.1, share + 0.1, 1 - share, 8.0, 0.0, 40, 0.95)
    return li.Circuits(orders, sizes, *told, provenance=about("circuits"))


DRAWN = {
    "circuit_curves": {
        "few": lambda: figures.circuit_curves(kept(("a", "random"), (0.1, 0.5))),
        "many": lambda: figures.circuit_curves(kept((*LONG[:4], "random"), (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5))),
    },
    "component_bars": {
        "few": lambda: figures.component_bars(heads(2, 1)),
        "many": lambda: figures.component_bars(heads()),
    },
    "contrast_bars": {
        "few": lambda: figures.contrast_bars(made(tokens=("a",)).contrast),
        "many": lambda: figures.contrast_bars(made(tokens=LONG).contrast),
    },
    "credit_bars": {
        "few": lambda: figures.credit_bars(made(tokens=("a",)).credit),
        "many": lambda: figures.credit_bars(made(tokens=LONG[:20], roles=("question", "context", "image")).credit),
    },
    "edge_map": {
        "few": lambda: figures.edge_map(edged(1)),
        "many": lambda: figures.edge_map(edged(40)),
    },
    "dose_curve": {
        "few": lambda: figures.dose_curve(pushed((0.0, 1.0), 1)),
        "many": lambda: figures.dose_curve(pushed((-2.0, -1.0, 0.0, 1.0, 2.0), 8)),
    },
    "faithfulness_curves": {
        "few": lambda: figures.faithfulness_curves(curves(1)),
        "many": lambda: figures.faithfulness_curves(curves(8), "deletion"),
    },
    "head_map": {"few": lambda: figures.head_map(heads(2, 1)), "many": lambda: figures.head_map(heads(32, 32))},
    "head_sources": {
        "few": lambda: figures.head_sources(heads(2, 1)),
        "many": lambda: figures.head_sources(heads(8, 32)),
    },
    "heatmap_grid": {
        "few": lambda: figures.heatmap_grid({"a": made(tokens=("a",)).patches}),
        "many": lambda: figures.heatmap_grid(dict.fromkeys(("a", "integrated_gradients"), made(LONG[:4]).patches)),
    },
    "joint_pairs": {"few": lambda: figures.joint_pairs(joined(2)), "many": lambda: figures.joint_pairs(joined(9))},
    "judged_definitions": {"all": lambda: figures.judged_definitions(li.judged(worlds()))},
    "heatmap": {
        shape: lambda shape=shape: figures.heatmap(a_map(shape)) for shape in ("square", "portrait", "landscape")
    },
    "lens_grid": {"few": lambda: figures.lens_grid(a_lens(2, 1)), "many": lambda: figures.lens_grid(a_lens(32, 90))},
    "pair_bars": {
        "few": lambda: figures.pair_bars(made(tokens=("a",)).credit - made(tokens=("a",), seed=1).credit),
        "many": lambda: figures.pair_bars(made(tokens=LONG[:20]).contrast - made(tokens=LONG[:20], seed=1).contrast),
    },
    "pair_lens": {
        "few": lambda: figures.pair_lens(a_lens(2, 1) - a_lens(2, 1, chance=0.5)),
        "many": lambda: figures.pair_lens(a_lens(32, 90) - a_lens(32, 90, chance=0.5)),
    },
    "pair_maps": {
        shape: lambda shape=shape: figures.pair_maps(a_map(shape) - a_map(shape))
        for shape in ("square", "portrait", "landscape")
    },
    "probe_layers": {"one": lambda: figures.probe_layers({"a": probes(6, 1)})},
    "probe_map": {"few": lambda: figures.probe_map(probes(2, 3)), "many": lambda: figures.probe_map(probes(32, 16))},
    "route_lines": {
        "few": lambda: figures.route_lines(routed(("image → last",), 3)),
        "many": lambda: figures.route_lines(routed(tuple(f"rest of image → {n}" for n in "abcdef"), 32)),
    },
    "sweep_map": {
        "layers": lambda: figures.sweep_map(swept(("layer",), tuple((n,) for n in range(32)))),
        "routes": lambda: figures.sweep_map(swept(("rows → keys",), tuple((f"image → {n}",) for n in ("last", "all")))),
        "heads": lambda: figures.sweep_map(
            swept(("layer", "head"), tuple((n, h) for n in range(32) for h in range(32)))
        ),
    },
    "trace_layers": {
        "few": lambda: figures.trace_layers(inside(("a",), 2)),
        "many": lambda: figures.trace_layers(inside(LONG * 3, 32), "hidden"),
    },
    "trace_lines": {
        "few": lambda: figures.trace_lines(written(("a",))),
        "many": lambda: figures.trace_lines(written(LONG * 3), "jensen_shannon"),
    },
    "trace_map": {
        "line": lambda: figures.trace_map(traced(("layer",), tuple((n,) for n in range(32)))),
        "map": lambda: figures.trace_map(
            traced(("layer", "positions"), tuple((n, p) for n in range(30) for p in LONG[:5]))
        ),
    },
    "word_map": {
        "words": lambda: figures.word_map(a_lens(), a_view()),
        "one": lambda: figures.word_map(a_lens(), a_view(), target="Purple"),
    },
}
CASES = [(name, case) for name, cases in DRAWN.items() for case in cases]


@pytest.fixture(params=LETTERS)
def letters(request):
    with mpl.rc_context({"font.size": request.param}):
        yield request.param


def test_all_figures_are_measured():
    assert DRAWN.keys() == drawing.FIGURES.keys()


def measured(ax, points):
    """The figure, drawn, and the least of the heights and widths of its Axes in ems."""
    figure = laid_out(ax)
    em = points * figure.dpi / 72
    return figure, min(side / em for one in figure.axes for side in size(one))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_nothing_leaves_the_page_and_no_axes_shrink(letters, name, case):
    figure, least = measured(DRAWN[name][case](), letters)
    assert cut(figure) == [] and overlaps(figure) == []
    assert least > LEAST
    page, drawn = figure.bbox_inches, figure.get_tightbbox()
    assert drawn.x0 > -0.05 and drawn.y0 > -0.05 and drawn.x1 < page.x1 + 0.05 and drawn.y1 < page.y1 + 0.05


KINDS = {
    "titles": {"axes.titlesize": 30},
    "labels": {"axes.labelsize": 24},
    "legends": {"legend.fontsize": 20},
    "ticks": {"xtick.labelsize": 20, "ytick.labelsize": 20},
    "tiny": {"font.size": 5},
    "bmh": style.library["bmh"],
    "ggplot": style.library["ggplot"],
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error:constrained_layout")
def test_figures_have_room_for_every_kind_of_letters(kind, name):
    """Where there is least of it: a figure of few cells."""
    with mpl.rc_context(KINDS[kind]):
        figure, least = measured(next(iter(DRAWN[name].values()))(), mpl.rcParams["font.size"])
        assert cut(figure) == [] and overlaps(figure) == [] and least > LEAST


def test_figures_grow_with_their_letters():
    """All of it: the same figure, so many times as large."""
    for name, case in CASES:
        sizes = []
        for points in (8, 20):
            with mpl.rc_context({"font.size": points}):
                sizes.append(DRAWN[name][case]().figure.get_size_inches() / points)
        assert sizes[0] == pytest.approx(sizes[1])


@pytest.mark.parametrize("draw", [figures.head_map, figures.head_sources])
@pytest.mark.parametrize("layers", [1, 2, 3, 40])
@pytest.mark.parametrize("given", [False, True])
def test_only_whole_blocks_are_ticked(draw, layers, given):
    ax = draw(heads(2, layers), ax=Figure(figsize=(4, 4)).subplots() if given else None)
    laid_out(ax)
    shown = {text.get_text(): place for text, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert shown and all(int(name) == place for name, place in shown.items()) and max(shown.values()) < layers


@pytest.mark.parametrize(("layers", "across"), [(1, 4), (2, 3), (32, 16)])
def test_only_whole_rows_of_probes_are_ticked(layers, across):
    ax = figures.probe_map(probes(layers, across), ax=Figure(figsize=(4, 4)).subplots())
    laid_out(ax)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == [str(int(place)) for place in ax.get_yticks()] and len({*labels}) == len(labels)


def test_probes_are_written_in_large_letters(tmp_path, monkeypatch):
    """The control: the file of a command is a figure of its own."""
    kept = []
    monkeypatch.setattr(export, "_png", lambda figure: kept.append(figure) or b"")
    with mpl.rc_context({"font.size": 20}):
        for found in (probes(2, 3), probes(6, 1)):
            export._probe_png(found)
            assert cut(laid_out(kept[-1].axes[0])) == [] and overlaps(kept[-1]) == []
