"""Two results side by side: their numbers, their figure, and what has no difference."""

import dataclasses

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.pairs import Pair
from lvlm_interp.report import figures
from tests.made import made, made_map
from tests.test_report_looks import a_lens, a_map, heads


def test_the_difference_is_first_minus_second():
    one, two = made(seed=0).credit, made(seed=1).credit
    pair = one - two
    frame = pair.to_frame()
    assert isinstance(pair, Pair) and frame["token"].tolist() == list(one.tokens)
    assert frame["credit[image] difference"].tolist() == pytest.approx((one.image - two.image).tolist())
    assert frame["total (first)"].tolist() == one.total.tolist()
    assert frame["total (second)"].tolist() == two.total.tolist()


def test_a_pair_says_what_its_numbers_are():
    one, two = made(seed=0).credit, made(seed=1).credit
    assert (one - two).note == one.note and one.note in repr(one - two)
    maps = made_map(("Purple", "."), torch.zeros), made_map(("Purple", "."), torch.ones)
    marked = dataclasses.replace(maps[1], residual=torch.tensor([0.5, 0.0]))
    assert (maps[0] - marked).note == f"first: {maps[0].note}; second: {marked.note}"


def test_each_kind_can_be_subtracted():
    one, two = made(seed=0), made(seed=1)
    assert (one.contrast - two.contrast).to_frame()["delta difference"].tolist() == pytest.approx(
        (one.contrast.delta - two.contrast.delta).tolist()
    )
    maps = (one.patches - two.patches).to_frame()
    values = (one.patches.values - two.patches.values).flatten().tolist()
    assert maps["value difference"].tolist() == pytest.approx(values) and "row" in maps and "row (first)" not in maps
    assert (a_lens() - a_lens(chance=0.5)).to_frame()["logprob[Pur|ple] difference"].tolist() == pytest.approx(
        [torch.tensor(2.0).log().item()] * 6 * 64, abs=1e-5
    )


def test_they_are_called_by_what_tells_them_apart():
    one = made().contrast
    about = dataclasses.replace(one.provenance, model="other")
    assert (one - dataclasses.replace(one, provenance=about)).names == ("made", "other")


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (made().credit, made().contrast, "both must be of one kind"),
        (made(("Yes",)).credit, made(("No",)).credit, "tokens are not the same: .*explain the same answer"),
        (made().credit, made().credit.with_value("full"), "value are not the same: 'odds' and 'full'"),
        (made().credit, made(roles=("question", "context", "image")).credit, "players are not the same"),
        (made().patches, a_map(texts=("Purple", ".")), "size are not the same"),
        (made().patches, made_map(("Purple", "."), torch.zeros, grid=(4, 3)), "boxes are not the same"),
        (a_lens(layers=6), a_lens(layers=7), "layers are not the same"),
    ],
)
def test_numbers_of_different_things_have_no_difference(one, two, said):
    with pytest.raises(InputError, match=said):
        one - two


def test_other_alternatives_are_another_zero():
    one = made().credit
    two = dataclasses.replace(one, alternatives=((" Green",),) * 2)
    with pytest.raises(InputError, match="give both the same with against="):
        one - two
    assert (one.with_value("full") - two.with_value("full")).names == ("first", "second")


def test_lenses_of_other_settings_have_no_difference():
    one = a_lens()
    other = dataclasses.replace(one.provenance, parameters={**one.provenance.parameters, "norm": False})
    with pytest.raises(InputError, match="their norm are not the same"):
        one - dataclasses.replace(one, provenance=other)


def test_results_without_a_difference_say_so():
    with pytest.raises(InputError, match="a DirectAttribution has no difference"):
        heads() - heads()


def test_a_pair_is_kept(tmp_path):
    pair = made(seed=0).contrast - made(seed=1).contrast
    again = li.load_result(pair.save(tmp_path / "p.safetensors"))
    assert again.to_frame().equals(pair.to_frame()) and again.names == pair.names


def test_paired_figures():
    one, two = made(seed=0), made(seed=1)
    ax = figures.pair_maps(one.patches - two.patches, "Purple", one.image)
    first, second, difference = ax.figure.axes
    shown = [panel.collections[0].get_array() for panel in (first, second, difference)]
    assert (shown[0] - shown[1]).tolist() == pytest.approx(shown[2].tolist(), abs=1e-6)
    assert len({panel.collections[0].get_clim() for panel in (first, second, difference)}) == 1
    bars = figures.pair_bars(one.credit - two.credit, "image")
    assert bars.lines[0].get_xdata().tolist() == pytest.approx((one.credit.image - two.credit.image).tolist())
    assert len([bar for bar in bars.patches if bar.get_height() < 1]) == 4
    grid = figures.pair_lens(a_lens() - a_lens(chance=0.5)).images[0].get_array()
    assert grid.data.flatten().tolist() == pytest.approx([torch.tensor(2.0).log().item()] * 6 * 64, abs=1e-5)
    with pytest.raises(InputError, match="this figure is of two PatchMap"):
        figures.pair_maps(one.credit - two.credit)
    with pytest.raises(InputError, match="no number 'hellinger' of two Contrast"):
        figures.pair_bars(one.contrast - two.contrast, "hellinger")


@pytest.mark.parametrize("names", [("a", "a"), ("difference", "b")])
def test_results_of_a_pair_have_names_of_their_own(names):
    """Columns of one name would be one."""
    one = made().contrast - made().contrast
    with pytest.raises(InputError, match="names of their own"):
        dataclasses.replace(one, names=names)
