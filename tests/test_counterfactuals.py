"""A counterfactual is one function: its name is known wherever names are told."""

import re
from pathlib import Path

import pytest

from lvlm_interp import counterfactuals
from lvlm_interp.counterfactuals.counterfactual import COUNTERFACTUALS, NAMED, Counterfactual, counterfactual
from lvlm_interp.errors import InputError, LvlmInterpError

CONCEPTS = Path(__file__).resolve().parents[1] / "docs" / "concepts.md"


def on_the_page():
    """The names in the first column of the page's table."""
    table = CONCEPTS.read_text(encoding="utf-8").split("| counterfactual | ")[1].split("\n\n")[0]
    return re.findall(r"^\| `(?:counterfactuals\.)?(\w+)[`(]", table, re.MULTILINE)


@pytest.fixture
def fog():
    """Two counterfactuals more, while a test runs."""

    @counterfactual
    def fog(density: float = 0.5) -> Counterfactual:
        return Counterfactual("fog", None, {"density": density})

    @counterfactual
    def haze(colour: str, density: float = 0.5) -> Counterfactual:
        return Counterfactual("haze", None, {"colour": colour, "density": density})

    yield
    for made in (COUNTERFACTUALS, NAMED):
        for name in ("fog", "haze"):
            made.pop(name, None)


@pytest.mark.usefixtures("fog")
def test_a_function_is_all_that_is_needed():
    assert counterfactuals.named("fog").parameters == {"density": 0.5}
    assert counterfactuals.fog(0.1).parameters == {"density": 0.1} and "fog" in dir(counterfactuals)
    with pytest.raises(InputError, match=r"'fog'\], .*\(box\) and .* and counterfactuals.haze\(colour\) take"):
        counterfactuals.named("haze")


def test_names():
    assert {"hidden", "blur"} < set(NAMED) == set(COUNTERFACTUALS) - {"black_box", "instruction", "swap"}
    assert all(make().name == name for name, make in NAMED.items())
    with pytest.raises(AttributeError, match="no counterfactual 'fog'; there are"):
        counterfactuals.fog()


@pytest.mark.parametrize(
    ("name", "told", "match"),
    [
        ("blur", {"radius": -0.1}, "0 or more"),
        ("blur", {"radius": float("nan")}, "0 or more"),
        ("blur", {"radius": 1e9}, "at most 10"),
        ("black_box", {"box": "abcd"}, "box=…"),
        ("black_box", {"box": None}, "box=…"),
        ("blur", {"radius": "wide"}, "takes float"),
        ("noise", {"step": 3.5}, "takes int"),
        ("noise", {"step": 1000}, "between 0 and 999"),
        ("crop", {"scale": (0.5, 0.1)}, "smallest and largest share"),
        ("crop", {"ratio": (0, 1)}, "width / height"),
        ("crop", {"scale": "a"}, "takes tuple"),
        ("black_box", {"box": (1, 2, 3)}, "takes tuple"),
        ("swap", {"image": 3}, "takes a PIL image"),
    ],
)
def test_what_it_is_made_with_is_looked_at_when_it_is_made(name, told, match):
    with pytest.raises(LvlmInterpError, match=match):
        getattr(counterfactuals, name)(**told)


def test_the_pages_and_the_command_tell_every_name(run):
    assert sorted(on_the_page()) == sorted(COUNTERFACTUALS)
    _, out, _ = run("contrast", "--help")
    assert all(re.search(rf"\b{name}\b", out) for name in NAMED)


@pytest.mark.usefixtures("fog")
def test_a_name_that_the_pages_do_not_tell_is_found():
    assert {"fog", "haze"} == set(COUNTERFACTUALS) - set(on_the_page())
