"""Files of families are collected without a list, and cannot contradict each other."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lvlm_interp
from lvlm_interp.families.shared.family import Family
from lvlm_interp.families.shared.names import USUAL, Names
from lvlm_interp.families.shared.registry import FAMILIES, NAMES, collected, files, named
from tests.families import FILES

FOLDER = Path(lvlm_interp.__file__).parent / "families"


def of(name, **held):
    module = ModuleType(name)
    vars(module).update(held)
    return module


def test_every_file_of_a_family_is_collected():
    assert [Path(file.__file__) for file in files()] == sorted(p for p in FOLDER.glob("*.py") if p.stem != "__init__")
    assert {kind for file in files() for kind in getattr(file, "FAMILIES", {})} == set(FAMILIES)
    names = {file.__name__.rpartition(".")[2] for file in files()}
    assert {file.__name__.rpartition(".")[2] for file in FILES} == {*names, "refused"}


def test_two_files_cannot_claim_one_type():
    first, second = of("first", FAMILIES={"llava": Family()}), of("second", FAMILIES={"llava": Family()})
    with pytest.raises(ValueError, match="type 'llava' has a row in first and another in second"):
        collected([first, second])
    assert collected([first, of("second", FAMILIES={"other": Family()}), of("none")]).keys() == {"llava", "other"}


def test_names_of_a_family_stand_behind_the_usual_ones():
    own = Names(attention=("odd", "attn"), row_axis={"odd_mask": 2})
    found = named([of("own", NAMES=own), of("none")])
    assert found.attention == (*USUAL.attention, "odd") and found.row_axis == {**USUAL.row_axis, "odd_mask": 2}
    with pytest.raises(ValueError, match="different things of row_axis 'odd_mask': 2, 1"):
        named([of("own", NAMES=own), of("other", NAMES=Names(row_axis={"odd_mask": 1}))])
    assert named(files()) == NAMES


def test_the_package_imports_no_families_by_itself():
    code = "import sys, lvlm_interp; print([name for name in sys.modules if name.startswith('lvlm_interp.families')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def families_named_in(root: Path, but: str) -> list[str]:
    """Where the code of a package says the type of a family, outside of one folder."""
    return [
        f"{file.relative_to(root).as_posix()}:{node.lineno}: {node.value}"
        for file in sorted(root.rglob("*.py"))
        if but not in file.relative_to(root).parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in FAMILIES
    ]


def test_no_code_elsewhere_names_a_family(tmp_path):
    assert families_named_in(FOLDER.parent, but="families") == []
    (tmp_path / "families").mkdir()
    for file in ("families/a.py", "b.py"):
        (tmp_path / file).write_text("x = config.model_type == 'llava'\n")
    assert families_named_in(tmp_path, but="families") == ["b.py:1: llava"]
