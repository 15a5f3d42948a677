"""The releases that the package admits are those that the tests run with, and older ones are asked what they have."""

import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lvlm_interp import compat

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)


def required(*without: str) -> list[Requirement]:
    """What the package needs, and each of its extras but some."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in without]
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def pinned(file: str) -> dict[str, Version]:
    found = PIN.findall((ROOT / file).read_text(encoding="utf-8"))
    return {canonicalize_name(name): Version(version) for name, version in found}


def off(needs: list[Requirement], pins: dict[str, Version], lowest: bool) -> list[str]:
    """Packages that are pinned outside of what is admitted, or not to the lowest release of it."""
    wrong = []
    for need in needs:
        pin = pins.get(canonicalize_name(need.name))
        least = next(Version(one.version) for one in need.specifier if one.operator == ">=")
        if pin is None or pin not in need.specifier or (lowest and not same(pin, least)):
            wrong.append(f"{need.name}: {pin}")
    return wrong


def same(pin: Version, least: Version) -> bool:
    """The same release; a bound may leave out the last numbers, as `>=3.1` does of 3.1.0."""
    return pin.release[: len(least.release)] == least.release


def test_every_lower_bound_is_tested() -> None:
    """But those of `families`: the releases of torchvision follow torch's, and the suite runs without them too."""
    assert not off(required("families"), pinned("constraints-oldest.txt"), lowest=True)
    assert not off(required(), pinned("constraints.txt"), lowest=False)


def test_a_bound_that_is_not_tested_is_found() -> None:
    """The control: a bound that was lowered without a test, one that was raised, a package that is not pinned."""
    pins = {"numpy": Version("2.0.0"), "torch": Version("2.6.0")}
    needs = [Requirement(line) for line in ("numpy>=1.26,<3", "torch>=2.7,<3", "scipy>=1.13,<2")]
    assert off(needs, pins, lowest=True) == ["numpy: 2.0.0", "torch: 2.6.0", "scipy: None"]
    assert off(needs, pins, lowest=False) == ["torch: 2.6.0", "scipy: None"]


@pytest.mark.parametrize(("here", "has"), [("5.9.0", False), ("5.10.2", True), ("5.23.0", True), ("6.0.0.dev0", True)])
def test_releases_are_compared_by_number(here: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "transformers", SimpleNamespace(__version__=here))
    assert compat.has_transformers("5.10") == has


def test_a_function_is_told_what_it_knows() -> None:
    assert compat.known_to(lambda size, mode: None, {"mode": 1, "other": 2}) == {"mode": 1}


def test_defaults_of_processors_old_and_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """From an attribute, or else from the class of arguments beside the processor's own, or beside one above it."""

    class Processor:
        pass

    class Derived(Processor):
        pass

    assert compat.images_kwargs(Derived()) == {}
    beside = SimpleNamespace(_defaults={"images_kwargs": {"crop_to_patches": True}})
    monkeypatch.setattr(sys.modules[__name__], "ProcessorKwargs", beside, raising=False)
    assert compat.images_kwargs(Derived()) == {"crop_to_patches": True}
    assert compat.images_kwargs(SimpleNamespace(images_kwargs={"max_patches": 4})) == {"max_patches": 4}
