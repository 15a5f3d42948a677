"""The reference world's own examples for the swap test: balanced, held out, and each with a truth that can be told."""

import dataclasses
from collections import Counter

import pytest

from lvlm_interp.attribution.swap import Swapped
from lvlm_interp.attribution.variants import cases_of
from lvlm_interp.errors import InputError, SceneError
from lvlm_interp.reference import swaps
from lvlm_interp.reference.knowledge import known
from lvlm_interp.reference.scenes import TRAINING_SEEDS
from lvlm_interp.reference.talk import make_talk
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
    """Each example is decided by its source, and nothing speaks for another; versions that the test adds included."""
    truth = {_read(one): one for one in _talks(table)}
    assert any(version.told.row == 0 for case in cases_of(table) for version in case.versions)
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
    """All versions, with what is right."""
    plan = truth[_of(case.versions[0])].plan
    for version in case.versions:
        right = truth[_of(version)].answer if version.told.row else _without(plan, version.told)
        yield dataclasses.replace(version.told, answer=right)


def _of(version):
    seen = tuple(picture.tobytes() for picture in version.pictures)
    return version.told.system, version.told.context, version.told.question, seen


def _without(plan, told):
    """What is right with what a version that the test adds has left; where nothing tells it, no answer of the world."""
    kept = {"pictures": (told.image, ()), "told": (told.context, ()), "system": (told.system, None)}
    lost = {name: nothing for name, (given, nothing) in kept.items() if not given}
    try:
        return make_talk(dataclasses.replace(plan, **lost)).answer
    except SceneError:
        return "that is not known"


def test_no_source_has_most_of_a_few():
    for count in range(3, 60):
        wanted = Counter()
        for (source, _), number in swaps._shared_out(count).items():
            wanted[source] += number
        assert wanted.total() == count and max(wanted.values()) <= count / 2


@pytest.mark.parametrize(
    ("count", "seeds", "said"), [(0, swaps.HELD_OUT, "1 or more"), (40, range(800_000, 800_002), "echo by question")]
)
def test_what_cannot_be_drawn_is_refused(count, seeds, said):
    with pytest.raises(InputError, match=said):
        swaps.swap_table(count, seeds)
