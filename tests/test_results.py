"""How results show themselves in a notebook."""

import subprocess
import sys
from dataclasses import dataclass

import torch

from lvlm_interp.results import MOST_ROWS, Result, html
from tests.made import about, made, made_map


def test_a_result_shows_its_table_escaped():
    shown = made_map(("<script>",), torch.ones)._repr_html_()
    assert "<table" in shown and "&lt;script&gt;" in shown and "<script>" not in shown and "1.000" in shown


def test_a_long_table_shows_its_ends():
    shown = made_map(("cat",), torch.ones, grid=(20, 20))._repr_html_()
    assert MOST_ROWS < shown.count("<tr") < MOST_ROWS + 5


def test_a_result_without_a_table_leaves_it_to_its_repr():
    @dataclass(frozen=True)
    class Plain(Result):
        number: int

    assert Plain(1, provenance=about("plain"))._repr_html_() is None


def test_a_kind_of_result_that_is_registered_shows_itself_so():
    @dataclass(frozen=True)
    class Drawn(Result):
        number: int

    html.register(Drawn, lambda result: f"<b>{result.number}</b>")
    assert Drawn(1, provenance=about("drawn"))._repr_html_() == "<b>1</b>"


def test_a_loaded_diagnosis_shows_the_explorer(tmp_path):
    """Though nobody imports the explorer: it comes with the diagnosis."""
    path = made().save(tmp_path / "d.safetensors")
    code = "import sys, lvlm_interp as li; print(li.Diagnosis.load(sys.argv[1])._repr_html_())"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == made()._repr_html_().rstrip("\n") and "<svg" in done.stdout
