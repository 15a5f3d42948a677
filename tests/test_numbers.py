"""Numbers that a result cannot hold: a file with them, whoever wrote it, is refused by the name of their field."""

import dataclasses
import math

import pytest
import torch
import zarr

import lvlm_interp as li
from lvlm_interp.attribution.swap import Pointed
from lvlm_interp.errors import InputError, OutputError
from lvlm_interp.fields import ANY
from lvlm_interp.heatmaps import over_examples
from lvlm_interp.storing import KINDS
from tests.kinds import kinds, one_of_each
from tests.swapping import made_test
from tests.tiny import tiny_inputs, tiny_llava

# Where there may be no number, and NaN says so: nowhere else.
BLANK = {
    "Checked": {"measured", "limit"},  # of a check that could not be carried out
    "Circuits": {"low", "high"},  # of one pair
    "Components": {"exact"},  # of those that were not exchanged in earnest
    "Decodings": {"precision", "recall", "f1", "low", "high", "gain_low", "gain_high"},  # of no yes; of one group
    "DoseResponse": {"low", "high", "length", "yes_rate"},  # of one example; where nothing was written
    "Edges": {"score"},  # of a sender that does not come before the receiver
    "Faithfulness": {"sensitivity"},  # of what does not vary
    "FaithfulnessOver": {*over_examples.NUMBERS},  # of one group; sensitivity of what does not vary
    "Judgement": {"low", "high"},  # of one group
    "Located": {"energy"},  # of a map without a positive number
    "Miss": {"second_value"},  # of one source
    "ProbeResult": {"control", "p", "q"},  # without types, without permutations
    "Routes": {"change", "low", "high"},  # of controls that no example has; of one example
    "Sanity": {"weights", "foil"},  # of a flat map, without a foil
    "SparseFeatures": {"unexplained"},  # of one position
    "Tracing": {"low", "high"},  # of one pair
    "TunedLens": {"tuned_kl", "plain_kl", "gain_low", "gain_high"},  # of a kind without positions, of one example
    "Watched": {"attention", "vision_heads"},  # of layers without attention
}
# Whatever a model, a user or a metric gives.
FREE = {
    "Captured": {"activations"},
    "ProbeResult": {"values", "low", "high", "baseline", "metadata"},
    "Provenance": {"parameters"},
    "Watched": {"captured"},
}
NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
LEFT_OUT = {("Lens", "top_logprobs", "-inf"), ("Lens", "target_logprob", "-inf")}  # of the vocabulary
FORGED = [
    ("Contrast", "hellinger", 1.5),
    ("Contrast", "with_logprob", 3.0),
    ("Contrast", "without_logprob", 3.0),
    ("Judgement", "right", 1.5),
    ("Judgement", "low", -0.5),
    ("Judgement", "counts", -1),
    ("Judgement", "confidence", 95.0),
    ("Lens", "positions", -4),
    ("Lens", "layers", -1),
    ("Lens", "top_logprobs", 2.0),
    ("Lens", "target_logprob", 2.0),
    ("Lens", "target_rank", 0),
    ("Lens", "top_ids", -1),
    ("Lens", "entropy", -1.0),
    ("Lens", "kl", -1.0),
    ("ProbeResult", "p", 1.5),
    ("ProbeResult", "q", -0.5),
    ("ProbeResult", "alpha", 5.0),
    ("ProbeResult", "l2", -1.0),
    ("ProbeResult", "fold", -1),
    ("ProbeResult", "truth", 2),
    ("ProbeResult", "truth", -1),
    ("ProbeResult", "values", 1.5),
    ("ProbeResult", "high", 1.5),
    ("Scores", "ids", -1),
    ("Scores", "logprob", 0.5),
    ("Scores", "rows", -1),
    ("TunedLens", "tuned_kl", -1.0),
    ("TunedLens", "steps", -1),
    ("Diagnosis", "spans", ((0, 2), (2, 9))),
    ("Diagnosis", "spans", ((2, 0), (2, 3))),
]


@pytest.fixture(scope="module")
def results():
    return one_of_each()


def with_number(held, number):
    """The same with a number in the place of its first; None where it holds none."""
    if isinstance(held, torch.Tensor):
        if not held.numel() or (not held.is_floating_point() and not float(number).is_integer()):
            return None
        changed = held.clone()
        changed.view(-1)[0] = number
        return changed
    if isinstance(held, tuple) and held and isinstance(held[0], int):
        return (number, *held[1:])
    return number if isinstance(held, (int, float)) and not isinstance(held, bool) else None


def read(one, field, value, path):
    """What a file gives in which a field holds something else."""
    forged = dataclasses.replace(one)
    object.__setattr__(forged, field, value)
    return li.load_result(forged.save(path / "r.safetensors"))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", sorted(kinds()))
def test_no_field_holds_what_is_no_number(results, kind, number, tmp_path):
    one = results[kind]
    for field in (f.name for f in dataclasses.fields(one) if f.name not in one.unsaved):
        held = getattr(one, field)
        changed = with_number(held, NUMBERS[number]) if isinstance(held, (torch.Tensor, float)) else None
        if field in FREE.get(kind, ()) or changed is None:
            continue
        if (number == "nan" and field in BLANK.get(kind, ())) or (kind, field, number) in LEFT_OUT:
            assert isinstance(read(one, field, changed, tmp_path), type(one))
            continue
        with pytest.raises(OutputError, match=rf"r.safetensors is damaged: .*{kind}.{field} holds (NaN|{number})"):
            read(one, field, changed, tmp_path)


@pytest.mark.parametrize(("kind", "field", "value"), FORGED)
def test_no_field_holds_a_number_out_of_its_range(results, kind, field, value, tmp_path):
    one = results[kind]
    changed = value if isinstance(value, tuple) else with_number(getattr(one, field), value)
    with pytest.raises(OutputError, match=rf"is damaged: .*{kind}.{field}.* holds .*should hold"):
        read(one, field, changed, tmp_path)


def test_what_may_be_blank_or_anything_is_known():
    every = {name: kind for name, kind in KINDS.items() if kind.__module__.startswith("lvlm_interp.")}
    blank = {name: {*kind.blank} for name, kind in every.items() if getattr(kind, "blank", None)}
    ranges = {name: getattr(kind, "ranges", {}) for name, kind in every.items()}
    free = {name: {field for field, allowed in some.items() if allowed is ANY} for name, some in ranges.items()}
    assert blank == BLANK and {name: fields for name, fields in free.items() if fields} == FREE
    for name, kind in every.items():
        known = {f.name for f in dataclasses.fields(kind)}
        assert {*getattr(kind, "blank", ()), *ranges[name]} <= known, name


def test_numbers_within_what_a_result_holds_are_looked_at(tmp_path):
    test = made_test()
    examples = [dataclasses.replace(one, pointed=Pointed(True, 1.5)) for one in test.examples]
    with pytest.raises(InputError, match=r"Pointed.chance holds 1.5; it should hold numbers from 0 to 1"):
        dataclasses.replace(test, examples=tuple(examples))


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_features_on_disk_are_looked_at_too(number, tmp_path):
    vlm = li.wrap(tiny_llava())
    found = li.collect_features(vlm, [tiny_inputs(vlm)], {"all": "blocks.*.hook_resid_pre"}, store=tmp_path)["all"]
    zarr.open_group(tmp_path, mode="a")["all"][0, 0, 0] = number
    with pytest.raises(OutputError, match="is damaged: the features 'all' hold infinity"):
        found.values[:]
