"""Figures of lenses and direct attribution show the numbers that they are given."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.report import figures
from lvlm_interp.report.figures.drawing import FIGURES
from tests.families import tiny_example, tiny_model


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_model("llava"))


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_example(vlm, "llava")


def test_the_grid_has_a_word_in_every_cell(vlm, x):
    found = li.lens(vlm, x)
    ax = figures.lens_grid(found)
    assert [t.get_text() for t in ax.texts][: x.length] == [words[0] for words in found.top_words[0]]
    assert torch.allclose(torch.tensor(ax.images[0].get_array().data), found.top_logprobs[..., 0].exp())
    assert not figures.lens_grid(found, words=False).texts


def test_an_axes_that_is_given_is_drawn_on(vlm, x):
    ax = Figure().subplots()
    assert figures.component_bars(li.direct(vlm, x), ax=ax) is ax and ax.patches


def test_bars_add_up_to_the_logit(vlm, x):
    found = li.direct(vlm, x)
    bars = [bar.get_width() for bar in figures.component_bars(found, 1, most=4).patches]
    assert len(bars) == 5 and abs(sum(bars) - float(found.logit[1])) < 1e-4


def test_heads_and_roles(vlm, x):
    found = li.direct(vlm, x)
    whole = figures.head_map(found, 0).images[0].get_array().data
    roles = [figures.head_map(found, 0, role).images[0].get_array().data for role in found.role_names]
    assert abs(whole - sum(roles)).max() < 1e-5
    by_layer = figures.head_sources(found, 0).images[0].get_array().data
    assert abs(by_layer[:, 0] - roles[0].sum(1)).max() < 1e-5


def test_words_on_the_picture(reference, purple_banana):
    view = purple_banana.images[0]
    found = li.lens(reference, purple_banana, [10, -1], positions="image", target="banana")
    ax = figures.word_map(found, view, 0)
    assert len(ax.texts) == len(view.positions) == 64 and "after 10 blocks" in ax.get_title()
    heat = figures.word_map(found, view, 0, target="banana")
    assert not heat.texts and len(heat.patches) == 64
    elsewhere = li.lens(reference, purple_banana, [-1], positions="question")
    with pytest.raises(InputError, match="did not read position"):
        figures.word_map(elsewhere, view)
    with pytest.raises(InputError, match=r"no layer number 10 of the 2 that this lens read, \(10, 30\)"):
        figures.word_map(found, view, 10)
    with pytest.raises(InputError, match="112, 112"):
        figures.word_map(found, view, picture=view.picture.resize((50, 50)))


def test_what_cannot_be_drawn(vlm, x):
    found = li.direct(vlm, x)
    with pytest.raises(InputError, match="no token 9: the answer has"):
        figures.component_bars(found, 9)
    with pytest.raises(InputError, match="no role 'context'"):
        figures.head_map(found, 0, "context")


@pytest.fixture(scope="module")
def probes():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, 2, 4, generator=generator)
    labels = torch.arange(60) % 2
    features[:, 1, 1, 0] += 4 * labels
    options = {"bootstrap": 50, "permutations": 200, "l2": 1.0}
    return li.fit_probes(features, labels, types=torch.arange(60) % 5, **options)


def test_probes_by_layer_and_head(probes):
    ax = figures.probe_map(probes)
    shown = torch.tensor(ax.images[0].get_array().data)
    assert torch.allclose(shown, probes.of("accuracy")) and tuple(shown.shape) == (3, 2)
    marked = {(int(y), int(x)) for x, y in ax.collections[0].get_offsets()}
    assert (1, 1) in marked and len(marked) == int(probes.better("accuracy").sum())
    strongest, color = probes.of("accuracy").argmax(), ax.collections[0].get_facecolors()
    place = [(int(y) * 2 + int(x)) for x, y in ax.collections[0].get_offsets()].index(int(strongest))
    assert color[place].tolist() == [1, 1, 1, 1]  # a dot on the darkest cell can be seen
    selective = figures.probe_map(probes, "selectivity").images[0].get_array().data
    assert torch.allclose(torch.tensor(selective).flatten(), probes.selectivity)
    with pytest.raises(InputError, match="no metric 'luck'"):
        figures.probe_map(probes, "luck")


def test_a_score_that_is_not_above_the_majoritys_has_no_dot(probes):
    """Labels can be told from it by least squares, which is what p says; but not so that the score shown shows it."""
    below = dataclasses.replace(
        probes, q=torch.zeros(6), low=torch.full_like(probes.low, 0.4), high=torch.full_like(probes.high, 0.9)
    )
    assert below.significant.all() and not below.better("accuracy").any()
    assert not len(figures.probe_map(below).collections[0].get_offsets())
    assert dataclasses.replace(below, low=below.low + 0.2).better("accuracy").all()
    assert below.better("selectivity").tolist() == (below.selectivity > 0).tolist()


def test_rows_are_named_after_their_blocks(probes):
    """Where sites were chosen, their rows are not their blocks; and features without names have neither."""
    named = dataclasses.replace(
        probes, sites=tuple(f"blocks.{layer}.attn.hook_z.{head}" for layer in (10, 20, 30) for head in (0, 1))
    )
    for result, label, first in ((named, "block", "10"), (probes, "site", "0")):
        ax = figures.probe_map(result)
        assert ax.get_ylabel() == label and ax.yaxis.get_major_formatter()(0, None) == first
    layers = dataclasses.replace(probes, sites=tuple(f"blocks.{n}.hook_resid_post" for n in (3, 5, 6, 7, 9, 11)))
    ax = figures.probe_layers({"layers": layers})
    assert ax.get_xlabel() == "block" and list(ax.lines[0].get_xdata()) == [3, 5, 6, 7, 9, 11]


def test_probes_by_layer(probes):
    ax = figures.probe_layers({"one": probes, "two": probes}, "auroc")
    drawn = [line for line in ax.lines if len(line.get_xdata()) == len(probes.sites)]
    assert len(drawn) == 2 and torch.allclose(torch.tensor(drawn[0].get_ydata()), probes.of("auroc").flatten())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    with pytest.raises(InputError, match="no results"):
        figures.probe_layers({})


# --- the room of figures ----------------------------------------------------------------------------------------------


def test_every_figure_is_a_name_of_the_package():
    assert {"heatmap", "credit_bars", "lens_grid", "probe_layers"} < set(dir(figures)) == set(FIGURES)
    assert all(getattr(figures, name) is function for name, function in FIGURES.items())  # no file hides its figure
    with pytest.raises(AttributeError, match="no figure 'pie'; there are"):
        figures.pie()


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_figure_draws_where_it_is_told(name):
    options = inspect.signature(FIGURES[name]).parameters
    assert options["ax"].default is None and options["title"].kind is inspect.Parameter.KEYWORD_ONLY


def test_drawing_does_not_load_pyplot():
    code = "import sys; from lvlm_interp.report import figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
