"""How figures look: what overlaps or is cut, how large panels are, in which ink and font; by boxes, not by pixels."""

import dataclasses
import io
import warnings

import matplotlib as mpl
import pytest
import torch
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.view import ImageView
from lvlm_interp.inside.direct import DirectAttribution
from lvlm_interp.inside.lens import Lens
from lvlm_interp.report import export, figures
from lvlm_interp.report.figures import drawing, lettering
from lvlm_interp.report.scales import own_limit, shared_limit
from lvlm_interp.report.sheet import sheet
from tests.looks import cut, laid_out, overlaps, size
from tests.made import about, made, made_contrast, made_map

SHAPES = {"square": (448, 448), "portrait": (300, 900), "landscape": (1200, 400)}
LONG = tuple(f" word{i}" for i in range(77))


def draw_from(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def a_map(shape="square", texts=(" Purple", " banana", "."), **changes):
    width, height = SHAPES[shape]
    grid = (8, 8) if width == height else (12, 4) if height > width else (4, 12)
    return dataclasses.replace(made_map(texts, draw_from(), grid, (width, height)), **changes)


def a_lens(layers=6, positions=64, token="<image>", chance=1.0):
    generator = torch.Generator().manual_seed(0)
    words = (" cat", " ", "\n", "ple", " banana")
    ids = torch.randint(0, 5, (layers, positions, 2), generator=generator)
    chances = torch.rand(layers, positions, 2, generator=generator).clamp(0.01).sort(-1, descending=True).values
    return Lens(
        layers=tuple(range(layers)),
        positions=torch.arange(positions),
        tokens=(token,) * positions,
        roles=("image",) * positions,
        top_ids=ids,
        top_logprobs=(chances * chance).log(),
        top_words=tuple(tuple(tuple(words[i] for i in row) for row in layer) for layer in ids.tolist()),
        entropy=torch.ones(layers, positions),
        kl=torch.ones(layers, positions),
        targets=("Purple",),
        target_tokens=(("Pur", "ple"),),
        target_logprob=(chances[None, ..., 0] * chance).log(),
        target_rank=torch.ones(1, layers, positions, dtype=torch.long),
        provenance=about("logit lens"),
    )


def a_view(side=8, pixels=448):
    step = pixels // side
    boxes = [(c * step, r * step, (c + 1) * step, (r + 1) * step) for r in range(side) for c in range(side)]
    cells = torch.arange(side * side).view(side, side)
    return ImageView(torch.arange(side * side), tuple(boxes), cells, Image.new("RGB", (pixels, pixels), "#999999"))


def heads(count=32, layers=6):
    draw, roles = draw_from(), ("template", "system", "context", "image", "question", "answer")
    return DirectAttribution(
        tokens=("Pur", "ple"),
        target=("Pur", "ple"),
        against="",
        positions=("a",) * len(roles),
        roles=roles,
        logit=draw(2),
        embedding=draw(2),
        heads=draw(2, layers, count),
        sources=draw(2, layers, count, len(roles)),
        mlps=draw(2, layers),
        biases=draw(2, layers),
        others=draw(2, layers),
        bias=draw(2),
        softcap=draw(2),
        provenance=about("direct"),
    )


# --- side by side ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inches", [(5.5, 2.2), (12.0, 4.0)])
def test_three_maps_in_a_figure_of_the_users_own(shape, inches):
    """As a paper has them, in Axes without any layout; nothing overlaps, nothing is cut, all are of one size."""
    figure = Figure(figsize=inches)
    panels = figure.subplots(1, 3)
    for token, ax in enumerate(panels):
        assert figures.heatmap(a_map(shape), token, ax=ax) is ax
    laid_out(panels[0])
    assert overlaps(figure) == [] and cut(figure) == []
    sizes = [size(ax) for ax in panels]
    assert all(one == pytest.approx(sizes[0], abs=0.5) for one in sizes)
    assert sizes[0][0] > 0.1 * figure.bbox.width or shape == "portrait"
    for ax in panels:
        (bar,) = ax.child_axes
        assert size(bar)[1] == pytest.approx(size(ax)[1], abs=0.5)  # as tall as the map


def test_a_layout_that_the_user_chose_is_kept():
    tight, moved = Figure(layout="tight"), Figure()
    moved.subplots_adjust(left=0.3)
    for figure in (tight, moved):
        before = figure.get_layout_engine()
        figures.heatmap(a_map(), ax=figure.subplots())
        assert figure.get_layout_engine() is before


PLACES = {
    "by hand": lambda figure: figure.add_axes((0.2, 0.2, 0.6, 0.6)),
    "inset": lambda figure: figure.add_axes((0, 0, 1, 1)).inset_axes((0.2, 0.2, 0.6, 0.6)),
    "grid of no figure": lambda figure: figure.add_subplot(GridSpec(1, 1)[0]),
}


@pytest.mark.parametrize("place", PLACES)
def test_axes_that_stand_in_no_grid_are_given_no_layout(place):
    """It would have nothing to lay out, and say so each time the figure is drawn."""
    figure = Figure()
    ax = PLACES[place](figure)
    before = ax.get_position().bounds
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.credit_bars(made(tokens=("a",)).credit, ax)
        figure.draw_without_rendering()
    assert figure.get_layout_engine() is None and ax.get_position().bounds == before


def removed():
    ax = Figure().subplots()
    ax.remove()
    return ax


OTHERS = {
    **{
        name: lambda name=name: Figure().add_subplot(projection=name) for name in ("polar", "3d", "mollweide", "hammer")
    },
    "removed": removed,
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("draw", [figures.heatmap, figures.pair_maps])
def test_axes_that_nothing_can_be_drawn_in_are_refused(kind, draw):
    of = a_map() - a_map() if draw is figures.pair_maps else a_map()
    with pytest.raises(InputError, match=r"^ax= is .*Axes of (two straight sides|a figure)"):
        draw(of, ax=OTHERS[kind]())


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("scale", ["log", "symlog", "logit"])
def test_scales_that_are_not_linear_are_refused(scale, side):
    """On them what is no number above 0 would be left out, and cells would not be of one size."""
    ax = Figure().subplots()
    ax.set(**{f"{side}scale": scale})
    with pytest.raises(InputError, match=rf"its {side} is '{scale}': ax\.set_{side}scale\('linear'\)"):
        figures.heatmap(a_map(), ax=ax)
    ax.set(**{f"{side}scale": "linear"})
    assert figures.heatmap(a_map(), ax=ax) is ax


@pytest.mark.parametrize("shape", SHAPES)
def test_a_figure_of_its_own_fits_the_picture(shape):
    patches = a_map(shape, alternatives=((" Yellow",),) * 3)
    ax = figures.heatmap(patches)
    figure = laid_out(ax)
    assert overlaps(figure) == [] and cut(figure) == []
    width, height = size(ax)
    assert width / height == pytest.approx(patches.size[0] / patches.size[1], rel=0.01)
    assert height > 0.7 * figure.bbox.height if shape != "landscape" else width > 0.7 * figure.bbox.width


def test_every_kind_of_figure_stands_beside_others():
    figure = Figure(figsize=(13, 9))
    axes = figure.subplots(3, 3).ravel()
    one = made(tokens=(" It", " is", " pur", "ple", "."), roles=("question", "context", "image"))
    figures.heatmap(a_map(), ax=axes[0])
    figures.credit_bars(one.credit, axes[1])
    figures.contrast_bars(one.contrast, axes[2])
    figures.head_map(heads(), ax=axes[3])
    figures.head_sources(heads(), ax=axes[4])
    figures.component_bars(heads(), most=8, ax=axes[5])
    figures.lens_grid(a_lens(), axes[6])
    figures.word_map(a_lens(), a_view(), target="Purple", ax=axes[7])
    figures.pair_bars(one.credit - one.credit, ax=axes[8])
    laid_out(axes[0])
    rotated = {"template", "system", "context", "image", "question", "answer"}  # their boxes are larger than they
    assert [pair for pair in overlaps(figure) if not rotated.issuperset(pair)] == [] and cut(figure) == []


def test_long_answers_do_not_print_words_on_each_other():
    ax = Figure(figsize=(5, 4)).subplots()
    figures.contrast_bars(made_contrast(LONG, draw_from()), ax)
    assert overlaps(laid_out(ax)) == []


def test_titles_wrap_in_their_own_panel():
    figure = Figure(figsize=(6, 3))
    panels = figure.subplots(1, 3)
    for ax in panels:
        figures.heatmap(a_map(alternatives=((" a yellow banana on a table",),) * 3), ax=ax)
    laid_out(panels[0])
    assert overlaps(figure) == [] and cut(figure) == []


# --- scales and colours ---------------------------------------------------------------------------------------------


def test_what_does_little_looks_faint():
    patches = a_map()
    patches.values[0], patches.values[1], patches.values[2] = 1.1, 0.22, 50.0  # the last is a full stop
    limits = [figures.heatmap(patches, token).collections[0].get_clim()[1] for token in range(3)]
    assert limits == pytest.approx([1.1, 1.1, 50.0]) == [shared_limit(patches, i) for i in range(3)]
    own = figures.heatmap(patches, 1, limit="own").collections[0].get_clim()
    assert own[1] == pytest.approx(0.22) == own_limit(patches, 1)
    assert figures.heatmap(patches, 1, limit=3).collections[0].get_clim() == (-3, 3)


def test_other_colour_maps():
    assert figures.heatmap(a_map(), cmap="RdBu_r").collections[0].get_cmap().name == "RdBu_r"
    assert figures.lens_grid(a_lens(), cmap="viridis").images[0].get_cmap().name == "viridis"
    with pytest.raises(InputError, match="no colour map 'rainbows'"):
        figures.heatmap(a_map(), cmap="rainbows")


def test_a_style_is_followed():
    with style.context(["dark_background", {"font.size": 7.0}]):
        ax, bars = figures.heatmap(a_map()), figures.contrast_bars(made().contrast)
        assert ax.title.get_fontsize() == pytest.approx(8.4) and ax.xaxis.label.get_fontsize() == 7.0
    for one in (ax, bars):
        inked = (one.title, one._left_title, one.xaxis.label, *one.get_xticklabels())
        ink = {to_rgb(text.get_color()) for text in inked}
        assert ink == {(1.0, 1.0, 1.0)}
    assert ax.get_facecolor()[:3] == (1.0, 1.0, 1.0)  # what the map's colours are mixed with
    colors = [drawing.luminance(bar.get_facecolor()) for bar in bars.patches if bar.get_height() < 1]
    assert min(colors) > 0.4  # to be seen on black


def test_words_on_a_map_are_read_on_any_cell():
    ax = figures.word_map(a_lens(), a_view())
    cells = [patch.get_facecolor() for patch in ax.patches]
    assert len(cells) == len(ax.texts) == 64
    contrast = [
        abs(drawing.luminance(text.get_color()) - drawing.luminance(cell))
        for text, cell in zip(ax.texts, cells, strict=True)
    ]
    assert min(contrast) > 0.3
    assert lettering.BLANK in {text.get_text() for text in ax.texts}  # a blank is no line break


def test_a_map_of_small_probabilities_is_not_blank():
    found = a_lens(chance=1e-4)
    ax = figures.word_map(found, a_view(), target="Purple")
    shown = sorted(drawing.luminance(patch.get_facecolor()) for patch in ax.patches)
    assert shown[-1] - shown[0] > 0.3 and ax.child_axes[0].get_ylabel() == "probability, log scale"
    assert figures.word_map(a_lens(), a_view(), target="Purple").child_axes[0].get_ylabel() == "probability"


def test_a_lens_at_image_positions_is_compact():
    ax = figures.lens_grid(a_lens(positions=576))
    assert ax.figure.get_figwidth() <= 14 and not ax.texts
    assert [label.get_text() for label in ax.get_xticklabels()] == ["<image> × 576"]
    assert overlaps(laid_out(ax)) == []


def test_heads_are_named():
    assert figures.head_map(heads()).get_xlabel() == "head"
    assert figures.head_map(heads(), "ple").get_title("left").startswith("“ple”")
    with pytest.raises(InputError, match="no tokens read 'cat'"):
        figures.heatmap(a_map(), "cat")


# --- letters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" cat", "␣cat"),
        ("cat", "cat"),
        (" ", "␣"),
        ("\n", "⏎"),
        ("\n\n", "⏎⏎"),
        ("a\tb", "a⇥b"),
        ("\x1b[2J", "�[2J"),
        ("\ue000", "�"),
        ("$5", r"\$5"),
        ("", "∅"),
    ],
)
def test_tokens_as_labels(token, shown):
    assert lettering.token_text(token) == shown
    figures.heatmap(a_map(texts=(token,))).figure.draw_without_rendering()


def test_letters_that_no_font_has_are_told_once(monkeypatch):
    monkeypatch.setattr(lettering, "FALLBACKS", {})
    monkeypatch.setattr(lettering.fontManager, "ttflist", [])
    patches = a_map(texts=("香蕉", "紫色"))
    with pytest.warns(UserWarning, match=r"no installed font has letters such as '香' \(Cjk\)"):
        ax = figures.heatmap(patches, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.heatmap(patches, 1)
        ax.figure.savefig(io.BytesIO())  # it is not said again for each letter


def test_a_font_that_has_the_letters_is_found(monkeypatch):
    """Here the other way round: with a font that lacks a letter, one that has it comes behind."""
    monkeypatch.setattr(lettering, "FALLBACKS", {})
    with mpl.rc_context({"font.family": ["cmss10"]}):
        ax = figures.heatmap(a_map(texts=("ж",)))
    first, *behind = ax.title.get_fontfamily()
    assert first == "cmss10" and behind  # one for the letter; another for the quotes, where the first lacks them


def test_letters_stay_letters_in_a_pdf(tmp_path):
    path = tmp_path / "map.pdf"
    before = mpl.rcParams["pdf.fonttype"]
    figures.heatmap(a_map()).figure.savefig(path)
    assert b"/Type3" not in path.read_bytes() and b"/CIDFontType2" in path.read_bytes()
    assert mpl.rcParams["pdf.fonttype"] == before
    figures.heatmap(a_map()).figure.savefig(tmp_path / "map.svg")
    assert "Purple" in (tmp_path / "map.svg").read_text(encoding="utf-8")


def test_figures_show_themselves_in_a_notebook():
    ax = figures.credit_bars(made().credit)
    for one in (ax, ax.figure):
        assert Image.open(io.BytesIO(one._repr_png_())).format == "PNG"


# --- sheets ---------------------------------------------------------------------------------------------------------


def test_one_sheet_for_a_long_answer(tmp_path):
    """The maps of what the image did most to, on one scale, in one file of bounded size."""
    one = made(tokens=LONG)
    ranked = one.ranked
    assert [abs(r.delta_nats) for r in ranked] == sorted((abs(r.delta_nats) for r in ranked), reverse=True)
    export.write(one, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["heatmaps.png"]
    assert (tmp_path / "out" / "heatmaps.png").stat().st_size < 1_000_000


@pytest.mark.parametrize("shape", SHAPES)
def test_panels_of_a_sheet_are_of_one_size(shape, monkeypatch):
    kept = []
    monkeypatch.setattr("lvlm_interp.report.sheet._bytes", lambda figure, kind: kept.append(figure) or b"")
    width, height = SHAPES[shape]
    picture = torch.full((height, width, 3), 200, dtype=torch.uint8)
    question = "What is the colour of the fruit that lies in the middle of the table, between both plates? " * 2
    one = made(tokens=LONG[:20], picture=picture, patches=a_map(shape, LONG[:20]), question=question)
    sheet(one, one.ranked)
    export.heatmap_png(one.patches, one.image, 0, question)
    for figure in kept:
        figure.draw_without_rendering()
        sizes = [size(ax) for ax in figure.axes if ax.images or ax.collections if ax.get_aspect() == 1]
        assert len(sizes) in (2, 12) and all(one == pytest.approx(sizes[0], abs=0.5) for one in sizes)
        assert overlaps(figure) == [] and cut(figure) == []
        limits = {ax.collections[0].get_clim() for ax in figure.axes if ax.collections and ax.get_aspect() == 1}
        assert len(limits) == 1


def test_pdf_text_of_a_saved_heatmap(tmp_path):
    one = made()
    path = export.save_heatmap(one.patches, one.image, tmp_path / "where.pdf")
    assert path.read_bytes().startswith(b"%PDF") and b"/Type3" not in path.read_bytes()
