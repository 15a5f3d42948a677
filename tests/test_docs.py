"""What the pages say is true: their code runs, the names in them exist, the notebook executes."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import typer
from nbclient import NotebookClient

import lvlm_interp as li
from lvlm_interp import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:    |\$ )lvlm-interp (.*)$", re.MULTILINE)
# What a test runs in the place of a notebook's numbers.
FEWER = {
    "04_heatmaps.ipynb": {'substrates=("tokens", "mean"), orders=5': 'substrates="tokens", orders=2'},
    "03_probes.ipynb": {'("object", "attribute", "relation")': '("attribute",)', "permutations=200": "permutations=20"},
}
NAME = re.compile(r"(?<![\w/.-])(?:li|lvlm_interp)((?:\.[A-Za-z_]\w*)+)")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and text of every Python block of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)), found[1]) for found in BLOCK.finditer(text)]


def unknown_names(text: str) -> list[str]:
    """The names written as `li.…` or `lvlm_interp.…` that do not exist."""
    return sorted({found[0] for found in NAME.finditer(text) if not exists(found[1][1:].split("."))})


def exists(path: list[str]) -> bool:
    """Whether attributes, or modules that nobody has imported yet, lead there."""
    place, name = li, "lvlm_interp"
    for part in path:
        name = f"{name}.{part}"
        if not hasattr(place, part):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                return False
        place = getattr(place, part)
    return True


def parse(line: str) -> str | None:
    """The command that a line calls, read without running it; raises what does not exist or is missing."""
    words, command = shlex.split(line), typer.main.get_command(cli.app)
    while hasattr(command, "commands") and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words, resilient_parsing="--help" in words).info_name


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES if code_blocks(p)], ids=page_name)
def test_code_of_a_page_runs(page, reference, tmp_path, monkeypatch):
    """All blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(li, "load", lambda name: {"reference": reference}[name.partition("@")[0]], raising=False)
    space: dict[str, object] = {"__name__": "page"}
    for line, code in code_blocks(page):
        exec(compile("\n" * line + code, page_name(page), "exec"), space)
    assert space.keys() > {"__name__", "__builtins__"}  # the blocks did something


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=page_name)
def test_names_on_a_page_exist(page):
    assert unknown_names(page.read_text(encoding="utf-8")) == []


def test_a_name_that_does_not_exist_is_found():
    text = "`li.load`, `lvlm_interp.reference.train`, `li.lode`, `lvlm_interp.counterfactuals.contrast.contrasted`"
    assert unknown_names(text) == ["li.lode", "lvlm_interp.counterfactuals.contrast.contrasted"]


@pytest.mark.parametrize("line", sorted({line for p in PAGES for line in COMMAND.findall(p.read_text("utf-8"))}))
def test_commands_on_the_pages_can_be_given(line):
    assert parse(line)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("diagnosis --image a.png", "diagnosis"),
        ("reference where --quickly", "No such option"),
        ("heatmap --image a.png", "question"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line, wrong):
    with pytest.raises(Exception, match=wrong):
        parse(line)


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs_jupyter", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "api" / "index.html").stat().st_size > 100_000


# --- notebook ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_name)
def test_notebooks_are_committed_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def shortened(path: Path) -> nbformat.NotebookNode:
    """A notebook with fewer examples: that its cells run is what is tested."""
    notebook = nbformat.read(path, as_version=4)
    for many, few in FEWER.get(path.name, {}).items():
        cells = [cell for cell in notebook.cells if many in cell.source]
        assert cells, f"{path.name} says no longer {many!r}"
        for cell in cells:
            cell.source = cell.source.replace(many, few)
    return notebook


def shown_by(path: Path, folder: Path) -> list[dict[str, str]]:
    """Run a notebook and return what its cells display; a failing cell raises `CellExecutionError`."""
    notebook = shortened(path)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
    # Figures appear with the kernel's own backend, not the one that the tests run under.
    client.execute(env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"})
    assert not list(folder.iterdir())  # it leaves no files behind
    return [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]


@pytest.mark.usefixtures("reference")  # makes sure that the model is built
@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_name)
def test_notebooks_run(path, tmp_path):
    shown = shown_by(path, tmp_path)
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("image/png" in data for data in shown) >= 3
    if path.name.startswith("01"):
        assert any("correlated" in page for page in pages)
        assert any("<svg" in page or "<img" in page for page in pages)  # the diagnosis shows itself
