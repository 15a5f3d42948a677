"""Results that do not fit together cannot be made, nor read; and two that hold the same are equal."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from jaxtyping import Float, jaxtyped

from lvlm_interp.fields import equal, fits
from tests.kinds import kinds, one_of_each
from tests.made import about, made


@pytest.fixture(scope="module")
def results():
    return one_of_each()


@pytest.mark.parametrize("name", sorted(kinds()))
def test_what_is_computed_fits_and_is_read_as_equal(results, name, tmp_path):
    one = results[name]
    read = type(one).load(one.save(tmp_path / "r.safetensors"))
    assert one == one and one == read and hash(one) == hash(read) and len({one, read}) == 1
    assert one != dataclasses.replace(one, provenance=about("another"))
    assert one != next(iter(other for other in results.values() if other is not one))


def test_numbers_decide_whether_results_are_equal():
    one, other = made(), made(seed=1)
    assert one == made() and one != other and one.contrast != other.contrast
    values = one.patches.values.clone()
    values[0, 0, 0] += 1
    patches = dataclasses.replace(one.patches, values=values)
    assert patches == dataclasses.replace(patches, values=values.clone()) and patches != one.patches


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(2), torch.ones(2).double(), False),
        ((1, (torch.ones(1), "x")), (1, (torch.ones(1), "x")), True),
        ({"a": [1.0, float("nan")]}, {"a": [1.0, float("nan")]}, True),
        ({"a": 1}, {"b": 1}, False),
        ((1, 2), [1, 2], False),
        (float("nan"), 1.0, False),
    ],
    ids=str,
)
def test_equal(one, other, same):
    assert equal(one, other) is same is equal(other, one)


# Changes of a file that somebody else wrote: which kind, which field, what it holds, and what is said. They are tried
# in a process of its own, where annotations are not checked at run time, as for users.
WRONG = [
    ("Lens", "roles", ("banana",) * 99, "roles"),
    ("Lens", "tokens", ("a",), "tokens"),
    ("Lens", "layers", ("<script>",) * 4, "layers"),
    ("Lens", "top_words", (), "top_words"),
    ("Lens", "positions", None, "positions"),
    ("DirectAttribution", "roles", ("user",), "roles"),
    ("DirectAttribution", "tokens", "abc", "tokens"),
    ("Contrast", "classes", ("banana",) * 3, "classes"),
    ("Contrast", "tokens", (), "tokens"),
    ("Contrast", "tokens", (1, 2, 3), "tokens"),
    ("Contrast", "hellinger", [7.0, 0.0, 0.0], "hellinger"),
    ("Contrast", "delta", [[1.0]], "delta"),
    ("Contrast", "delta", [1.0], "delta"),
    ("CreditSplit", "value", "banana", "banana"),
    ("CreditSplit", "players", ("question",), "coalitions"),
    ("CreditSplit", "units", (), "units"),
    ("PatchMap", "hide_from", "nobody", "hide_from"),
    ("PatchMap", "size", (0, 0), "map"),
    ("PatchMap", "size", ("a", "b"), "size"),
    ("PatchMap", "tokens", ("a", "b", "c", "d"), "tokens"),
    ("PatchMap", "alternatives", (("a",),), "alternatives"),
    ("TunedLens", "steps", "many", "steps"),
    ("TunedLens", "weight", [1.0], "weight"),
    ("ProbeResult", "site_shape", (2, 2), "site"),
    ("ProbeResult", "kind", "banana", "kind"),
    ("ProbeResult", "metadata", {"a": (1,)}, "'a'"),
    ("Conformance", "checks", (1,), "checks"),
    ("Conformance", "checks", "all hold", "checks"),
    ("Contrasts", "each", {}, "contrasts"),
    ("Diagnosis", "words", ("a",), "words"),
    ("Diagnosis", "question", None, "question"),
    ("Diagnosis", "credit", None, "credit"),
    ("Diagnosis", "question", "a\ud800b", "question"),
]

SCRIPT = """
import json, sys, torch, lvlm_interp as li
from lvlm_interp.errors import OutputError
from tests.kinds import one_of_each
from tests.test_fields import WRONG
results, said = one_of_each(), []
for kind, field, value, _ in WRONG:
    one = results[kind]
    kept = getattr(one, field)
    object.__setattr__(one, field, torch.tensor(value) if isinstance(value, list) else value)
    path = one.save(sys.argv[1])
    object.__setattr__(one, field, kept)
    try:
        li.load_result(path)
        said.append("nothing")
    except OutputError as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    path = tmp_path_factory.mktemp("fields") / "r.safetensors"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[f"{kind}.{name}" for kind, name, *_ in WRONG])
def test_a_file_whose_values_do_not_fit_is_refused(complaints, number):
    said = complaints[number]
    assert "r.safetensors is damaged" in said and WRONG[number][3] in said


@pytest.mark.parametrize(
    ("value", "hint", "is_so"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("a", float, False),
        (None, str | None, True),
        (("a", 1), tuple[str, int], True),
        (("a",), tuple[str, int], False),
        (["a"], tuple[str, ...], False),
        ({"a": 1.0}, dict[str, float], True),
        ({"a": "b"}, dict[str, float], False),
    ],
)
def test_fits(value, hint, is_so):
    assert fits(value, hint) is is_so


def test_axes_of_a_callers_function_are_none_of_ours():
    @jaxtyped(typechecker=None)
    def of_a_user(value: Float[torch.Tensor, "row width"]) -> bool:
        assert isinstance(value, Float[torch.Tensor, "row width"])
        return fits(value[:1], Float[torch.Tensor, "row width"], strict=False)

    assert of_a_user(torch.ones(3, 2))
