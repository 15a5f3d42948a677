"""Scenes of the reference world: shares are what the tables say, what is hidden does not show, training is apart."""

import itertools

import numpy as np
import pytest
from PIL import ImageChops
from scipy.stats import binomtest

from lvlm_interp.errors import SceneError
from lvlm_interp.reference import drawing, scenes, things
from lvlm_interp.reference.scenes import TRAINING_SEEDS, make_scene, make_scenes
from lvlm_interp.reference.wording import Asked

LAYOUTS = [("google", [(34, 19, 65, None)]), ("twitter", [(32, 0, 55, "top"), (22, 58, 53, "bottom")])]


def same(a, b):
    return ImageChops.difference(a.image, b.image).getbbox() is None


def may_be(share, hits):
    """Whether these hits could come of this share: its 99.9% interval holds it."""
    low, high = binomtest(sum(hits), len(hits)).proportion_ci(0.999, "wilson")
    return low < share < high


@pytest.fixture(scope="module")
def many():
    return list(make_scenes(2000))


# --- tables ---------------------------------------------------------------------------------------


def test_tables_are_of_what_can_be_drawn():
    known = set(things.nouns())
    assert set(things.COMPANY) == known
    assert sum(len(listed.split()) for listed in things.COMPANIES.values()) == len(known)  # none stands twice
    assert {*things.DRAWN_COLORS, *things.RECOLORABLE, *things.ANIMALS} <= known
    assert set(things.NATURAL_COLORS) - set(things.RECOLORABLE) == set()
    assert set(things.DRAWN_COLORS.values()) <= set(things.COLORS)


def test_company():
    assert set(things.company_of("banana")) >= {"apple", "cherries"} and "banana" not in things.company_of("banana")
    assert "hot dog" in things.company_of("pizza")


# --- shares ---------------------------------------------------------------------------------------


def natural_shown(some):
    """For each thing with an evident colour whose colour shows: whether it has it."""
    return [item.color == item.natural for s in some for item in s.items if item.natural and item.color]


def test_things_keep_their_evident_colour_in_seven_of_ten(many):
    assert may_be(scenes.NATURAL, natural_shown(many))


def test_a_world_of_any_colours_would_be_found(monkeypatch):
    monkeypatch.setattr(scenes, "NATURAL", 1 / 7)
    assert not may_be(0.7, natural_shown(make_scenes(600)))


def test_shares_of_grey_and_covered(many):
    colored = [item for s in many for item in s.items if item.noun in things.COLORED and item.cover is None]
    assert may_be(scenes.GREY, [item.state == "grey" for item in colored])
    several = [item for s in many for item in s.items if len(s.items) > 1]
    assert 0.06 < np.mean([item.state == "covered" for item in several]) < 0.12
    for scene in many:
        assert [item.state for item in scene.items].count("covered") <= (len(scene.items) > 1)


def test_counts_and_company(many):
    counted = [len(s.items) for s in many]
    for count in range(1, 5):
        assert may_be(scenes.COUNTS.count(count) / len(scenes.COUNTS), [n == count for n in counted])
    pairs = [(s.items[0].noun, s.items[1].noun) for s in many if len(s.items) == 2]
    together = [b in things.company_of(a) for a, b in pairs]
    assert 0.48 < np.mean(together) < 0.65  # half on purpose, some by chance
    shuffled = [b in things.company_of(a) for (a, _), (_, b) in itertools.pairwise(pairs)]
    assert np.mean(shuffled) < 0.2


# --- training and held-out ------------------------------------------------------------------------


def pairs_held_out(some):
    return [things.is_held_out([item.noun for item in s.items]) for s in some if len(s.items) > 1]


def test_training_shows_no_pair_that_is_held_out():
    assert not any(pairs_held_out(make_scenes(1500, TRAINING_SEEDS.start + 77)))
    assert np.mean(pairs_held_out(make_scenes(600))) > 0.1  # other seeds do


def test_a_tenth_of_all_pairs_is_held_out():
    every = list(itertools.combinations(things.nouns(), 2))
    assert may_be(things.HELD_OUT_PAIRS, [things.is_held_out(pair) for pair in every])
    pair = next(pair for pair in every if things.is_held_out(pair))
    assert things.is_held_out(pair[::-1]) and not things.is_held_out(pair[:1])
    assert [item.noun for item in make_scene(TRAINING_SEEDS.start, objects=pair).items] == list(pair)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [*drawing.TRAINED_STYLES, drawing.HELD_OUT_STYLE])
def test_grey_has_no_hue_and_keeps_its_light(style):
    for noun in things.NATURAL_COLORS:
        sprite = drawing.sprite(noun, style)
        plain, grey = (np.asarray(drawn).astype(int) for drawn in (sprite, drawing.grey(sprite)))
        shown = plain[..., 3] > 127
        hue = [np.ptp(pixels[shown][:, :3], axis=1) for pixels in (plain, grey)]
        assert hue[1].max() <= 1 and np.median(hue[0]) > 10
        light = [pixels[shown][:, :3].mean(1) for pixels in (plain, grey)]
        assert np.corrcoef(light)[0, 1] > 0.99


def test_a_cover_hides_what_is_under_it():
    for seed in range(12):
        scene = make_scene(seed, objects=["banana", "cat"], colors=["covered", None])
        assert same(scene, scene.redrawn(["spider", "cat"]))
        uncovered = scene.redrawn(colors=["yellow", None])
        assert not same(uncovered, uncovered.redrawn(["spider", "cat"]))
    covers = {make_scene(n, objects=["banana", "cat"], colors=["covered", None]).items[0].cover for n in range(12)}
    assert covers == set(drawing.COVERS)


def test_covers_are_opaque_where_they_are():
    for kind in drawing.COVERS:
        alpha = np.asarray(drawing.cover(kind))[..., 3]
        assert set(np.unique(alpha)) == {0, 255} and alpha[20:56, 12:52].min() == 255


def test_three_and_four_stand_in_quadrants_in_reading_order(many):
    half = drawing.SIZE // 2
    for scene in (s for s in many if len(s.items) > 2):
        places = [item.place for item in scene.items]
        assert places == [place for place in drawing.QUADRANTS if place in places] and len(set(places)) == len(places)
        for item in scene.items:
            left, top, right, bottom = item.box
            assert right <= half if "left" in item.place else left >= half
            assert bottom <= half if "top" in item.place else top >= half


def test_scenes_that_are_named_stand_where_they_stood():
    """Layouts of seeds that documents name; they do not depend on what else is drawn from a seed."""
    purple = make_scene(3, objects=["banana"], colors=["purple"]).layout
    two = make_scene(4, objects=["banana", "cat"], colors=["purple", None]).layout
    spots = [(layout.style, [(s.left, s.top, s.side, s.place) for s in layout.spots]) for layout in (purple, two)]
    assert spots == LAYOUTS
    assert make_scene(4, objects=["fox", "bus"]).layout == two
    four = make_scene(9, objects=["fox", "bus", "cat", "pig"])
    assert (
        make_scene(9, objects=["owl", "bed", "bee", "bat"], colors=[None, "red", "grey", "covered"]).layout
        == four.layout
    )


def test_a_scene_redrawn_is_itself(many):
    for scene in many[:40]:
        again = scene.redrawn()
        assert again == scene and same(again, scene)
        first = next(color for color in things.COLORS if color != scene.items[0].color)
        other = scene.redrawn(colors=[first, *(item.paint for item in scene.items[1:])])
        assert other.items[0].color == first and other.layout == scene.layout and not same(other, scene)


def test_items_tell_what_the_picture_shows():
    scene = make_scene(5, objects=["banana", "car", "lemon", "cat"], colors=[None, "grey", "covered", "blue"])
    banana, car, lemon, cat = scene.items
    assert (banana.color, banana.natural, banana.state, banana.recolored) == ("yellow", "yellow", "drawn", False)
    assert (car.color, car.natural, car.state, car.shown) == (None, None, "grey", "car")
    assert (lemon.color, lemon.natural, lemon.state) == (None, "yellow", "covered") and lemon.shown in drawing.COVERS
    assert (cat.color, cat.state, cat.recolored) == ("blue", "painted", True)
    assert scene.shows(Asked("color", "banana")) == "yellow" and scene.shows(Asked("color", "car")) is None
    assert scene.shows(Asked("there", "lemon")) is None and scene.shows(Asked("there", "dog")) == "no"
    assert scene.item("lemon") == lemon


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objects": ["wug"]}, "cannot draw"),
        ({"objects": ["cat", "dog", "pig", "cow", "fox"]}, "one to four different"),
        ({"objects": []}, "one to four different"),
        ({"objects": ["cat"], "colors": ["invisible"]}, "cannot draw.*grey.*covered"),
        ({"objects": ["cat", "dog"], "colors": ["covered", "covered"]}, "at most one object of a scene is covered"),
        ({"colors": ["red"]}, "are of objects"),
    ],
)
def test_scenes_that_are_refused(given, message):
    with pytest.raises(SceneError, match=message):
        make_scene(0, **given)


def test_a_redrawing_has_as_many_things():
    with pytest.raises(SceneError, match="1 objects stand in this scene; got 2"):
        make_scene(3, objects=["cat"]).redrawn(["cat", "dog"])
