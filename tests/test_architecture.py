"""The rules of the package's structure, each with a control that breaks it.

Every checker is run on the package itself, where it must find nothing, and on a small tree with one planted violation,
which it must name.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import lvlm_interp
from tests.structure import (
    HOOKS_ARE_REGISTERED_IN,
    PACKAGE,
    import_cycles,
    loaded_by,
    long_files,
    long_functions,
    modules,
    pickling,
    stray_hooks,
    unadapted_imports,
    wrong_way_imports,
)

# --- the package keeps the rules --------------------------------------------------------------------------------------

Checker = Callable[[Path], list[str]]


def test_the_package_is_found() -> None:
    assert {"errors", "results", "model"} <= {module.part for module in modules(PACKAGE)}


@pytest.mark.parametrize(
    "checker", [wrong_way_imports, import_cycles, unadapted_imports, long_functions, long_files, pickling, stray_hooks]
)
def test_the_package_keeps_the_rule(checker: Checker) -> None:
    assert checker(PACKAGE) == []


@pytest.mark.parametrize("root", [Path(__file__).parent, *(PACKAGE.parent / name for name in ("benchmarks", "tools"))])
def test_files_beside_the_package_are_short_too(root: Path) -> None:
    assert long_files(root) == []


def test_importing_the_package_loads_nothing_slow() -> None:
    assert loaded_by("import lvlm_interp") == set()


# --- and the checkers notice when it does not -------------------------------------------------------------------------

SHORT_ONE = "def f():\n    x = 1\n"
MIDDLING = "def f():\n" + "    x = 1\n" * 6
LONG = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 51
JUST_SHORT_ENOUGH = "def f():\n    '''Doc.\n" + "\n" * 40 + "    '''\n" + "    x = 1\n" * 50

BROKEN = {
    "upwards": (
        wrong_way_imports,
        {"model/vlm.py": "import os\nfrom lvlm_interp.attribution.credit import credit\n"},
        ["model/vlm.py:2: model must not import lvlm_interp.attribution.credit.credit"],
    ),
    "upwards, relative": (
        wrong_way_imports,
        {"attribution/credit.py": "from ..report import page\n"},
        ["attribution/credit.py:1: attribution must not import lvlm_interp.report.page"],
    ),
    "upwards, from the root": (
        wrong_way_imports,
        {"attribution/credit.py": "from lvlm_interp import errors, report\n"},
        ["attribution/credit.py:1: attribution must not import lvlm_interp.report"],
    ),
    "upwards, by name": (
        wrong_way_imports,
        {"errors.py": "import importlib\nimportlib.import_module('lvlm_interp.cli')\n"},
        ["errors.py:2: errors must not import lvlm_interp.cli"],
    ),
    "upwards, for types": (
        wrong_way_imports,
        {"results.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lvlm_interp.model\n"},
        ["results.py:3: results must not import lvlm_interp.model"],
    ),
    "upwards, in a function": (
        wrong_way_imports,
        {"model/vlm.py": "def f():\n    from lvlm_interp.cli import main\n"},
        ["model/vlm.py:2: model must not import lvlm_interp.cli.main"],
    ),
    "a public name": (
        wrong_way_imports,
        {"report/page.py": "from lvlm_interp import credit\n"},
        ["report/page.py:1: report must not import lvlm_interp.credit"],
    ),
    "a part without a place": (
        wrong_way_imports,
        {"extras.py": "import os\n"},
        ["extras.py: no place for 'extras' in ORDER"],
    ),
    "a cycle": (
        import_cycles,
        {"model/a.py": "from lvlm_interp.model import b\n", "model/b.py": "from .a import x\n"},
        ["lvlm_interp.model.a imports lvlm_interp.model.b imports lvlm_interp.model.a"],
    ),
    "a lazy cycle": (
        import_cycles,
        {"model/a.py": "from .b import x\n", "model/b.py": "def f():\n    from .a import x\n"},
        ["lvlm_interp.model.a imports lvlm_interp.model.b imports lvlm_interp.model.a"],
    ),
    "a cycle for types": (
        import_cycles,
        {"model/a.py": "from .b import x\n", "model/b.py": "if TYPE_CHECKING:\n    from . import a\n"},
        ["lvlm_interp.model.a imports lvlm_interp.model.b imports lvlm_interp.model.a"],
    ),
    "an adapted package": (
        unadapted_imports,
        {"methods/patches.py": "def f():\n    from captum.attr import ShapleyValues\n"},
        ["methods/patches.py:2: only adapters import captum"],
    ),
    "a long function": (long_functions, {"cli.py": 2 * SHORT_ONE + LONG}, ["cli.py:5: f has 51 lines"]),
    "functions of middle length": (
        long_functions,
        {"cli.py": SHORT_ONE + 2 * MIDDLING},
        ["1 of 3 functions have fewer than 6 lines; that is less than half"],
    ),
    "a long file": (long_files, {"cli.py": "x = 1\n" * 401}, ["cli.py: 401 lines"]),
    "pickle": (pickling, {"results.py": "import pickle\n"}, ["results.py:1: pickle"]),
    "torch.load": (pickling, {"cli.py": "import torch\n\ntorch.load('x')\n"}, ["cli.py:3: torch.load"]),
    "torch.load by name": (pickling, {"cli.py": "from torch import load\n"}, ["cli.py:1: torch.load"]),
    "a pickled frame": (pickling, {"cli.py": "def f(x):\n    x.to_pickle('y')\n"}, ["cli.py:2: x.to_pickle"]),
    "a pickled array": (pickling, {"cli.py": "np.load('x', allow_pickle=True)\n"}, ["cli.py:1: allow_pickle"]),
    "a stray hook": (
        stray_hooks,
        {"methods/lens.py": "def f(m):\n    m.register_forward_hook(print)\n"},
        ["methods/lens.py:2: register_forward_hook"],
    ),
}

SOUND = {
    "downwards": (wrong_way_imports, {"attribution/credit.py": "from lvlm_interp.engine.score import score\n"}),
    "beside": (wrong_way_imports, {"attribution/credit.py": "from .contrast import contrast\n"}),
    "others": (wrong_way_imports, {"errors.py": "import cli\nfrom report import page\n"}),
    "anything, for the command line": (wrong_way_imports, {"cli.py": "import lvlm_interp as li\n"}),
    "a chain": (import_cycles, {"model/a.py": "from .b import x\n", "model/b.py": "from .c import x\n"}),
    "an adapter": (unadapted_imports, {"adapters/captum.py": "from captum.attr import ShapleyValues\n"}),
    "50 lines below a docstring": (long_functions, {"cli.py": SHORT_ONE + JUST_SHORT_ENOUGH}),
    "400 lines": (long_files, {"cli.py": "x = 1\n" * 400}),
    "safetensors": (pickling, {"results.py": "from safetensors.torch import load\nnp.load(x, allow_pickle=False)\n"}),
    "the file for hooks": (stray_hooks, {HOOKS_ARE_REGISTERED_IN: "def f(m):\n    m.register_forward_hook(print)\n"}),
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("checker", "files", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_a_planted_violation_is_named(
    checker: Checker, files: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    assert checker(plant(tmp_path, files)) == expected


@pytest.mark.parametrize(("checker", "files"), SOUND.values(), ids=SOUND.keys())
def test_what_is_allowed_is_not_named(checker: Checker, files: dict[str, str], tmp_path: Path) -> None:
    assert checker(plant(tmp_path, files)) == []


def test_a_slow_import_is_noticed() -> None:
    assert "pandas" in loaded_by("import lvlm_interp, pandas")


SHAPED = """
from __future__ import annotations
from dataclasses import dataclass
from jaxtyping import Float
from torch import Tensor

def first(x: Float[Tensor, "row column"]) -> Float[Tensor, "column"]:
    return x[0] if x.shape[0] else x

@dataclass(frozen=True)
class Result:
    values: Float[Tensor, "token"]
"""


def test_shapes_are_checked_while_tests_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {"shaped.py": SHAPED})
    monkeypatch.setattr(lvlm_interp, "__path__", [*lvlm_interp.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "lvlm_interp.shaped", None)  # restored, that is removed, afterwards
    del sys.modules["lvlm_interp.shaped"]
    shaped = importlib.import_module("lvlm_interp.shaped")

    assert shaped.first(torch.ones(2, 3)).shape == (3,)
    assert shaped.Result(torch.ones(3)).values.shape == (3,)
    with pytest.raises(TypeCheckError, match="parameters"):
        shaped.first(torch.ones(3))
    with pytest.raises(TypeCheckError, match="return value"):
        shaped.first(torch.ones(0, 3))
    with pytest.raises(TypeCheckError, match="parameters"):
        shaped.Result(torch.ones(2, 3))
