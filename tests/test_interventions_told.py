"""Interventions that were not done, or cannot be: each is told, and the model is as it was."""

from dataclasses import dataclass

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, SiteError, VisibilityError
from lvlm_interp.interventions import Ablate, Intervention, Knockout, Patch, Region, Scale, Steer, intervene
from lvlm_interp.interventions.intervention import Act, Together
from lvlm_interp.model.sites import Site
from tests.tiny import hooks_of, tiny_inputs, tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return li.wrap(tiny_llava())


@pytest.fixture(scope="module")
def x(vlm):
    return tiny_inputs(vlm)


@pytest.fixture(scope="module")
def other(vlm):
    return tiny_inputs(vlm, seed=5)


@dataclass(frozen=True, eq=False, repr=False)
class Planted(Intervention):
    """One that looks like another, and does not do it."""

    like: Intervention
    change: object

    def acts(self, vlm, x):
        return [
            Act(act.site, lambda value, act=act: self.change(act, value), act.seen, act.measure, act.holds)
            for act in self.like.acts(vlm, x)
        ]


def added_false(act, value):
    """A mask of truths added to scores, where False adds nothing."""
    return value + torch.zeros(value.shape, dtype=torch.bool)


def edited_copy(act, value):
    copy = value.clone()
    copy[...] = act.change(value)
    return value


def half_done(act, value):
    """A change of the first head, or the first position, alone."""
    new = value.clone()
    new[:, :1] = act.change(value)[:, :1]
    return new


@pytest.mark.parametrize(
    ("like", "change", "told"),
    [
        (Knockout(["question", "template"], "image"), added_false, "changed nothing"),
        (Knockout(["question", "template"], "image"), half_done, "did not achieve"),
        (Ablate("blocks.1.hook_mlp_out"), edited_copy, "changed nothing"),
        (Ablate("blocks.1.hook_mlp_out"), half_done, "did not achieve"),
        (Steer(direction=torch.ones(32), layers=[1]), edited_copy, "changed nothing"),
        (Steer(direction=torch.ones(32), layers=[1]), lambda act, value: 2 * value - act.change(value), "not achieve"),
    ],
)
def test_planted_ones_that_do_nothing(vlm, x, like, change, told):
    intervene(vlm, x, like)
    with pytest.raises(InputError, match=told):
        intervene(vlm, x, Planted(like, change))


def test_a_module_that_does_not_run_is_told(vlm, x):
    idle = torch.nn.Linear(2, 2)
    vlm.model.add_module("idle", idle)

    class Elsewhere(Planted):
        def acts(self, vlm, x):
            site = Site("blocks.0.idle", idle, "output")
            return [Act(site, torch.zeros_like, site, lambda a, b: {}, bool)]

    try:
        with pytest.raises(SiteError, match="did not fire"):
            intervene(vlm, x, Elsewhere(Ablate(), None))
    finally:
        del vlm.model.idle


REFUSED = {
    "masked already": (lambda x, y: Knockout("image", "question"), InputError, "changed nothing"),
    "nothing to see": (lambda x, y: Knockout([0], [0]), InputError, "leaves the row 0 nothing to see"),
    "no such role": (lambda x, y: Knockout("last", "imgae"), VisibilityError, "imgae"),
    "beyond the prompt": (lambda x, y: Knockout("last", [99]), InputError, "99"),
    "no such layer": (lambda x, y: Knockout(layers=[7]), SiteError, "no layer 7"),
    "no such head": (lambda x, y: Ablate(heads=[(1, 9)]), SiteError, "no head 9 in layer 1"),
    "a head elsewhere": (lambda x, y: Ablate(heads=[(1, 2), (2, 0)], layers=[1]), SiteError, "layer 2, which layers="),
    "a direction elsewhere": (
        lambda x, y: Steer(direction={1: torch.ones(32), 9: torch.ones(32)}),
        SiteError,
        "layer 9",
    ),
    "no such neuron": (lambda x, y: Ablate("blocks.1.hook_mlp_out", neurons=99), SiteError, "no neuron 99"),
    "no such site": (lambda x, y: Ablate("blocks.1.hook_nothing"), SiteError, "hook_nothing"),
    "no heads": (lambda x, y: Ablate("blocks.1.hook_mlp_out", heads=1), SiteError, "no heads"),
    "itself": (lambda x, y: Patch("blocks.1.hook_resid_post", "image", source=x), InputError, "changed nothing"),
    "another length": (lambda x, y: Patch("blocks.1.hook_resid_post", source=y), InputError, "Position 16 is the"),
    "another width": (lambda x, y: Steer(direction=torch.ones(5)), InputError, "5 wide"),
    "no width": (lambda x, y: Ablate("blocks.1.hook_mlp_out", directions=torch.ones(2, 32)), InputError, "follow from"),
    "a tower's positions": (lambda x, y: Ablate("vision.*.hook_mlp_out", "image"), SiteError, "positions of its own"),
    "no place in the picture": (lambda x, y: Knockout("last", Region((0, 0, 9, 9))), ValueError, "not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused(vlm, x, case):
    made, error, told = REFUSED[case]
    longer, hooks = tiny_inputs(vlm, answer=(7, 8)), hooks_of(vlm.model)
    with pytest.raises(error, match=told):
        intervene(vlm, x, made(x, longer))
    assert hooks_of(vlm.model) == hooks and not vlm.active_edits


@pytest.mark.parametrize(
    "made",
    [
        lambda: Steer(direction=torch.zeros(32)),
        lambda: Steer(),
        lambda: Ablate(by="resample"),
        lambda: Ablate(by="zero", source=[]),
        lambda: Scale(factor=-1.0),
        lambda: Knockout() + 3,
    ],
)
def test_what_cannot_be_made(made):
    with pytest.raises(InputError):
        made()


def test_positions_are_those_of_the_example(vlm, x):
    shorter = vlm.inputs(torch.tensor([[1, 20, 21, 22]]), answer_start=3)
    for run in (
        lambda: vlm.run(vlm.batch([x, x])),
        lambda: vlm.run(shorter),
        lambda: li.score(vlm, shorter, shorter.everything),
    ):
        with (
            pytest.raises(InputError, match="positions of an intervention are those of its example"),
            li.intervening(vlm, x, Ablate("blocks.1.hook_mlp_out", "image")),
        ):
            run()


def test_sums_keep_their_order(vlm, x):
    """Removed and then pushed is not pushed and then removed."""
    push, remove = Steer("blocks.1.hook_mlp_out", direction=torch.ones(32)), Ablate("blocks.1.hook_mlp_out")
    assert isinstance(push + remove, Together) and len((push + remove + push).each) == 3
    first, second = intervene(vlm, x, remove + push), intervene(vlm, x, push + remove)
    assert torch.equal(second.logprob[1], intervene(vlm, x, remove).logprob[1])
    assert not torch.allclose(first.logprob[1], second.logprob[1], atol=1e-3)


def test_a_result_tells_what_was_done(vlm, x, other, tmp_path):
    done = Knockout("last", "image") + Patch("blocks.1.hook_resid_post", "image", source=other)
    found = intervene(vlm, x, done, unit="answer")
    told = found.provenance.parameters["interventions"]
    assert told.startswith("Knockout(rows='last', keys='image') + Patch(") and found.provenance.edits == ()
    assert li.load_result(found.save(tmp_path / "effects.safetensors")) == found
    frame = found.to_frame()
    assert frame["change"][0] == pytest.approx(float((found.logprob[1] - found.logprob[0]).sum()), abs=1e-5)
    assert found.by_token()["kl"].tolist() == found.kl.tolist()
    assert set(found.certified()["measure"]) == {"attention on these edges", "distance to what replaces it"}
    foil = intervene(vlm, x, Knockout("last", "image"), unit="token", value="odds")
    assert foil.value == "odds" and all(foil.alternatives)
