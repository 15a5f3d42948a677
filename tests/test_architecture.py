"""The rules of the package's structure, each with a control that breaks it.

A checker reads the source of a package and returns what it found wrong, as text. Every checker is run on the
package itself, where it must find nothing, and on a small tree with one planted violation, which it must name.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import lvlm_interp

PACKAGE = Path(__file__).resolve().parents[1] / "lvlm_interp"
NAME = "lvlm_interp"

# Which top-level parts a part may import, besides itself.
BASE = {"errors", "results", "compat"}
MODEL = BASE | {"model"}
METHODS = MODEL | {"counterfactuals", "methods"}
ANYTHING = METHODS | {"adapters", "reference", "report", "tables", "cli"}
MAY_IMPORT = {
    "errors": set(),
    "compat": set(),
    "results": {"errors"},
    "model": BASE,
    "adapters": MODEL,
    "reference": MODEL,
    "counterfactuals": MODEL,
    "methods": METHODS,
    "report": METHODS,
    "tables": {"errors"},
    "cli": ANYTHING,
    "__main__": ANYTHING,
    "__init__": ANYTHING,
}
# Allowed inside a function, never when a module is loaded: `load("reference")` must find the reference model, and
# `vlm.nnsight` its adapter.
INSIDE_FUNCTIONS = {("model", "reference"), ("model", "adapters")}

ADAPTED = {"captum", "nnsight", "transformer_lens"}
SLOW_TO_IMPORT = {"torch", "transformers", "matplotlib", "pandas", *ADAPTED}
PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNPICKLING_CALLS = {"torch.load", "torch.save", "read_pickle", "to_pickle"}
HOOKS_ARE_REGISTERED_IN = "model/capture.py"
LONGEST_FUNCTION = 60


@dataclass(frozen=True)
class Import:
    """`from target import name` or `import target`, as written in one place of one module."""

    target: str
    name: str | None
    line: int
    in_function: bool
    for_types_only: bool  # under `if TYPE_CHECKING:`

    @property
    def full_name(self) -> str:
        return f"{self.target}.{self.name}" if self.name else self.target


@dataclass(frozen=True)
class Module:
    name: str  # dotted, a package by its own name
    path: str  # inside the package, with forward slashes
    tree: ast.Module

    @property
    def part(self) -> str:
        """The top-level part it belongs to: a file's or a folder's name."""
        return self.path.split("/")[0].removesuffix(".py")

    @cached_property
    def imports(self) -> list[Import]:
        package = self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]
        return list(_imports(self.tree, package.split("."), False, False))


def _imports(node: ast.AST, package: list[str], in_function: bool, for_types: bool) -> Iterator[Import]:
    """The imports below a node; `import_module("…")` with a name spelled out counts as one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, None, child.lineno, in_function, for_types)
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else []
            target = ".".join(above + ([child.module] if child.module else []))
            for alias in child.names:
                yield Import(target, alias.name, child.lineno, in_function, for_types)
        elif isinstance(child, ast.Call) and _dotted(child.func).endswith(("import_module", "__import__")):
            spelled = [a.value for a in child.args[:1] if isinstance(a, ast.Constant)]
            yield from (Import(str(name), None, child.lineno, in_function, for_types) for name in spelled)
        inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        types = for_types or (isinstance(child, ast.If) and _dotted(child.test).endswith("TYPE_CHECKING"))
        yield from _imports(child, package, inside, types)


def _dotted(node: ast.AST) -> str:
    """`a.b.c` as text; what is not a name is left out."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def modules(root: Path) -> list[Module]:
    """Every module of the package in a folder."""
    found = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        parts = [NAME, *path.with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path.as_posix(), ast.parse(file.read_text(encoding="utf-8"))))
    return found


# --- the checkers -----------------------------------------------------------------------------------------------------


def wrong_way_imports(root: Path) -> list[str]:
    """Imports inside the package that `MAY_IMPORT` does not allow."""
    problems = []
    for module in modules(root):
        if module.part not in MAY_IMPORT:
            problems.append(f"{module.path}: no row for {module.part!r} in MAY_IMPORT")
            continue
        for found in module.imports:
            if found.target.split(".")[0] != NAME:
                continue
            part = (*found.full_name.split("."), "__init__")[1]
            # A public name taken from the package itself may be anything, so only what may import anything takes it.
            allowed = MAY_IMPORT[module.part] | {module.part} if part in MAY_IMPORT else set()
            exempt = found.in_function and (module.part, part) in INSIDE_FUNCTIONS
            if part not in allowed and not exempt and MAY_IMPORT[module.part] is not ANYTHING:
                problems.append(f"{module.path}:{found.line}: {module.part} must not import {found.full_name}")
    return problems


def import_cycles(root: Path) -> list[str]:
    """Modules that need each other while they are being loaded."""
    all_modules = modules(root)
    names = {module.name for module in all_modules}
    needs: dict[str, set[str]] = {}
    for module in all_modules:
        at_load = [i for i in module.imports if not i.in_function and not i.for_types_only]
        needed = {i.full_name if i.full_name in names else i.target for i in at_load}
        needs[module.name] = (needed & names) - {module.name}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def unadapted_imports(root: Path) -> list[str]:
    """Imports of the adapted packages outside `adapters`."""
    return [
        f"{module.path}:{found.line}: only adapters import {found.target.split('.')[0]}"
        for module in modules(root)
        for found in module.imports
        if found.target.split(".")[0] in ADAPTED and module.part != "adapters"
    ]


def long_functions(root: Path) -> list[str]:
    """Functions whose body, without its docstring, is longer than `LONGEST_FUNCTION` lines."""
    problems = []
    for module in modules(root):
        for node in ast.walk(module.tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > LONGEST_FUNCTION:
                problems.append(f"{module.path}:{node.lineno}: {node.name} has {lines} lines")
    return problems


def pickling(root: Path) -> list[str]:
    """Anything that reads or writes pickles: loading one runs whatever its author wrote."""
    problems = []
    for module in modules(root):
        for found in module.imports:
            if found.target.split(".")[0] in PICKLERS or found.full_name in UNPICKLING_CALLS:
                problems.append(f"{module.path}:{found.line}: {found.full_name}")
        for node in ast.walk(module.tree):
            name = _dotted(node) if isinstance(node, ast.Attribute) else ""
            if name in UNPICKLING_CALLS or name.rpartition(".")[2] in UNPICKLING_CALLS:
                problems.append(f"{module.path}:{node.lineno}: {name}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and _is_not(node.value, False):
                problems.append(f"{module.path}:{node.value.lineno}: allow_pickle")
    return problems


def _is_not(node: ast.expr, value: object) -> bool:
    return not (isinstance(node, ast.Constant) and node.value is value)


def stray_hooks(root: Path) -> list[str]:
    """Hooks registered anywhere but in the one file that removes them again."""
    return [
        f"{module.path}:{node.lineno}: {node.attr}"
        for module in modules(root)
        if module.path != HOOKS_ARE_REGISTERED_IN
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("_hook")
    ]


def loaded_by(statement: str) -> set[str]:
    """Which of the slow packages a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return SLOW_TO_IMPORT & set(done.stdout.split())


# --- the package keeps the rules --------------------------------------------------------------------------------------

Checker = Callable[[Path], list[str]]


def test_the_package_is_found() -> None:
    assert {"errors", "results", "model"} <= {module.part for module in modules(PACKAGE)}


@pytest.mark.parametrize(
    "checker", [wrong_way_imports, import_cycles, unadapted_imports, long_functions, pickling, stray_hooks]
)
def test_the_package_keeps_the_rule(checker: Checker) -> None:
    assert checker(PACKAGE) == []


def test_importing_the_package_loads_nothing_slow() -> None:
    assert loaded_by("import lvlm_interp") == set()


# --- and the checkers notice when it does not -------------------------------------------------------------------------

LONG = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 61
JUST_SHORT_ENOUGH = "def f():\n    '''Doc.\n" + "\n" * 40 + "    '''\n" + "    x = 1\n" * 60

BROKEN = {
    "upwards": (
        wrong_way_imports,
        {"model/vlm.py": "import os\nfrom lvlm_interp.methods.credit import credit\n"},
        ["model/vlm.py:2: model must not import lvlm_interp.methods.credit.credit"],
    ),
    "upwards, relative": (
        wrong_way_imports,
        {"methods/credit.py": "from ..report import page\n"},
        ["methods/credit.py:1: methods must not import lvlm_interp.report.page"],
    ),
    "upwards, from the root": (
        wrong_way_imports,
        {"methods/credit.py": "from lvlm_interp import errors, report\n"},
        ["methods/credit.py:1: methods must not import lvlm_interp.report"],
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
    "sideways": (
        wrong_way_imports,
        {"adapters/captum.py": "import lvlm_interp.methods.credit\n"},
        ["adapters/captum.py:1: adapters must not import lvlm_interp.methods.credit"],
    ),
    "a public name": (
        wrong_way_imports,
        {"report/page.py": "from lvlm_interp import credit\n"},
        ["report/page.py:1: report must not import lvlm_interp.credit"],
    ),
    "the reference model when a module is loaded": (
        wrong_way_imports,
        {"model/vlm.py": "from lvlm_interp.reference import build\n"},
        ["model/vlm.py:1: model must not import lvlm_interp.reference.build"],
    ),
    "a part without a row": (
        wrong_way_imports,
        {"extras.py": "import os\n"},
        ["extras.py: no row for 'extras' in MAY_IMPORT"],
    ),
    "a cycle": (
        import_cycles,
        {"model/a.py": "from lvlm_interp.model import b\n", "model/b.py": "from .a import x\n"},
        ["lvlm_interp.model.a imports lvlm_interp.model.b imports lvlm_interp.model.a"],
    ),
    "an adapted package": (
        unadapted_imports,
        {"methods/patches.py": "def f():\n    from captum.attr import ShapleyValues\n"},
        ["methods/patches.py:2: only adapters import captum"],
    ),
    "a long function": (long_functions, {"cli.py": LONG}, ["cli.py:1: f has 61 lines"]),
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
    "downwards": (wrong_way_imports, {"methods/credit.py": "from lvlm_interp.model.score import score\n"}),
    "beside": (wrong_way_imports, {"methods/credit.py": "from .contrast import contrast\n"}),
    "others": (wrong_way_imports, {"errors.py": "import cli\nfrom report import page\n"}),
    "the reference model, in a function": (
        wrong_way_imports,
        {"model/vlm.py": "def load():\n    from lvlm_interp.reference import build\n"},
    ),
    "anything, for the command line": (wrong_way_imports, {"cli.py": "import lvlm_interp as li\n"}),
    "a cycle that never runs": (
        import_cycles,
        {
            "model/a.py": "from .b import x\n",
            "model/b.py": "def f():\n    from .a import x\nif TYPE_CHECKING:\n    from . import a\n",
        },
    ),
    "an adapter": (unadapted_imports, {"adapters/captum.py": "from captum.attr import ShapleyValues\n"}),
    "60 lines below a docstring": (long_functions, {"cli.py": JUST_SHORT_ENOUGH}),
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
