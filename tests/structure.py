"""Checkers of the package's structure: each reads the source of a package and returns what it found wrong, as text."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lvlm_interp"
NAME = "lvlm_interp"

# Parts in the order of their imports: each may import itself and what stands before it, never what stands behind. So
# there can be no circle of parts, lazy or for types only.
ORDER = (
    "shown",
    "errors",
    "files",
    "compat",
    "storing",
    "causes",
    "fields",
    "given",
    "results",
    "pairs",
    "bootstrap",
    "columns",
    "checkpoints",
    "inputs",
    "families",
    "model",
    "engine",
    "adapters",
    "reference",
    "opening",
    "attribution",
    "counterfactuals",
    "inside",
    "heatmaps",
    "probes",
    "interventions",
    "generation",
    "tables",
    "report",
    "cli",
    "__main__",
)
EVERYTHING = {"__init__"}  # the table of public names; it imports them by name, when they are asked for

ADAPTED = {"captum", "nnsight", "transformer_lens"}
SLOW_TO_IMPORT = {"torch", "transformers", "matplotlib", "pandas", *ADAPTED}
PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNPICKLING_CALLS = {"torch.load", "torch.save", "read_pickle", "to_pickle"}
HOOKS_ARE_REGISTERED_IN = "model/hooks.py"
LONGEST_FUNCTION, LONGEST_FILE = 50, 400  # lines
SHORT = 6  # half of all function bodies have fewer lines


@dataclass(frozen=True)
class Import:
    """`from target import name` or `import target`, as written in one place of one module."""

    target: str
    name: str | None
    line: int

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
        return list(_imports(self.tree, package.split(".")))


def _imports(tree: ast.AST, package: list[str]) -> Iterator[Import]:
    """All imports, wherever they stand; `import_module("…")` with a name spelled out counts as one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join(above + ([node.module] if node.module else []))
            yield from (Import(target, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith(("import_module", "__import__")):
            spelled = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
            yield from (Import(str(name), None, node.lineno) for name in spelled)


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
    """Imports inside the package that point from a part to one behind it in `ORDER`."""
    problems = []
    for module in modules(root):
        if module.part in EVERYTHING:
            continue
        if module.part not in ORDER:
            problems.append(f"{module.path}: no place for {module.part!r} in ORDER")
            continue
        allowed = ORDER[: ORDER.index(module.part) + 1]
        problems += [
            f"{module.path}:{found.line}: {module.part} must not import {found.full_name}"
            for found in module.imports
            if found.target.split(".")[0] == NAME and not _below(found, allowed)
        ]
    return problems


def _below(found: Import, allowed: tuple[str, ...]) -> bool:
    """A public name taken from the package itself may be anything, so only what may import anything takes it."""
    part = (*found.full_name.split("."), "")[1]
    return part in allowed or "report" in allowed[:-1]


def import_cycles(root: Path) -> list[str]:
    """Modules that need each other: when they are loaded, in a function, or for types."""
    all_modules = modules(root)
    names = {module.name for module in all_modules}
    needs: dict[str, set[str]] = {}
    for module in all_modules:
        needed = {i.full_name if i.full_name in names else i.target for i in module.imports}
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


def _bodies(root: Path) -> Iterator[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Every function and how many lines its body has, without its docstring."""
    for module in modules(root):
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                yield module, node, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_functions(root: Path) -> list[str]:
    """Functions whose body is longer than `LONGEST_FUNCTION` lines; all, if not half of them are short."""
    found = list(_bodies(root))
    problems = [f"{m.path}:{f.lineno}: {f.name} has {lines} lines" for m, f, lines in found if lines > LONGEST_FUNCTION]
    short = sum(lines < SHORT for _, _, lines in found)
    if 2 * short < len(found):
        problems.append(f"{short} of {len(found)} functions have fewer than {SHORT} lines; that is less than half")
    return problems


def long_files(root: Path) -> list[str]:
    """Files of more than `LONGEST_FILE` lines."""
    counted = [(file, len(file.read_text(encoding="utf-8").splitlines())) for file in sorted(root.rglob("*.py"))]
    return [f"{file.relative_to(root).as_posix()}: {lines} lines" for file, lines in counted if lines > LONGEST_FILE]


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
