"""The reference world's own examples for the swap test: balanced, held out, and each with a truth that can be told."""

import dataclasses
from collections import Counter

import pytest

from lvlm_interp.attribution.swap import Swapped
from lvlm_interp.attribution.variants import cases_of
from lvlm_interp.errors import InputError
from lvlm_interp.reference import swaps
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.scenes import TRAINING_SEEDS
from lvlm_interp.reference.talks import talks
from lvlm_interp.reference.variants import variants

COUNT = 40


@pytest.fixture(scope="module")
def table():
    return swaps.swap_table(COUNT)


@pytest.fixture(scope="module")
def originals(table):
    return table[table["source"] == "original"]


def test_shares_are_kept_and_none_has_most(originals):
    quotas = {source: share for source, (share, _) in swaps.SHARES.items()}
    assert sum(quotas.values()) == pytest.approx(1) and max(quotas.values()) < 0.45
    kinds = Counter(originals["kind"])
    assert len(originals) == COUNT
    assert set(kinds) == {kind for _, kinds in swaps.SHARES.values() for kind in kinds}


def test_it_is_held_out_and_always_the_same(table, originals):
    assert all(int(seed) not in TRAINING_SEEDS for seed in table["group"])
    plain = originals[originals["kind"] == "knowledge"]["question"]
    assert all(known()[question].held_out for question in plain)
    again = swaps.swap_table(COUNT)
    assert again.drop(columns="picture").equals(table.drop(columns="picture"))


def test_one_that_answers_rightly_is_told_by_each(table):
    """Each example is decided by its source, and nothing speaks for another."""
    truth = {_read(one): one.answer for one in _talks(table)}
    examples = [Swapped(case.name, case.kind, case.group, tuple(_answered(case, truth))) for case in cases_of(table)]
    verdicts = [example.verdict() for example in examples]
    assert not [verdict for verdict in verdicts if not verdict.clear]
    share = Counter(verdict.source for verdict in verdicts)
    for source, (wanted, _) in swaps.SHARES.items():
        assert share[source] / len(verdicts) == pytest.approx(wanted, abs=0.08)


def _talks(table):
    for seed in table["group"].unique():
        for talk in talks(int(seed)):
            yield from (talk, *(variant.talk for variant in variants(talk)))


def _read(talk):
    seen = tuple(scene.image.tobytes() for scene in talk.pictures)
    return talk.system or "", " ".join(talk.context), talk.question, seen


def _answered(case, truth):
    """The versions that stand in the table, with what is right."""
    for version in (version for version in case.versions if version.told.row):
        told, seen = version.told, tuple(picture.tobytes() for picture in version.pictures)
        yield dataclasses.replace(told, answer=truth[told.system, told.context, told.question, seen])


@pytest.mark.parametrize(
    ("count", "seeds", "said"), [(0, swaps.HELD_OUT, "1 or more"), (40, range(800_000, 800_002), "echo by question")]
)
def test_what_cannot_be_drawn_is_refused(count, seeds, said):
    with pytest.raises(InputError, match=said):
        swaps.swap_table(count, seeds)
