"""What one thread asks of a model while another uses it: it waits, and finds the model as it was."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
import torch

import lvlm_interp as li
from lvlm_interp.opening import conformance
from tests.tiny import tiny_inputs, tiny_llava

SITE = "blocks.0.hook_resid_post"


class Beside:
    """An edit that changes nothing: when it is first called, another thread begins something, and is given time."""

    def __init__(self, pool, call):
        self.pool, self.call, self.begun = pool, call, list[Future]()

    def __call__(self, value):
        if not self.begun:
            self.begun.append(self.pool.submit(self.call))
            wait(self.begun, timeout=0.5)
            self.early = self.begun[0].done()
        return value


EDITING = {
    "a score": lambda vlm, x, edit: li.score(vlm, x, x.everything, edits={SITE: edit}),
    "a capture": lambda vlm, x, edit: vlm.capture(x, SITE, edits={SITE: edit}),
}


@pytest.mark.parametrize("editing", EDITING)
def test_who_edits_in_a_call_is_waited_for(editing):
    vlm = li.wrap(tiny_llava())
    x = tiny_inputs(vlm)
    with ThreadPoolExecutor(1) as pool:
        edit = Beside(pool, lambda: vlm.run(x))
        EDITING[editing](vlm, x, edit)
        assert torch.equal(edit.begun[0].result(), vlm.run(x)) and not edit.early


def test_opening_a_model_is_waited_for(monkeypatch):
    """Its check visits sites, as a user may; but it ends by itself."""
    vlm = li.wrap(tiny_llava())
    x, own = tiny_inputs(vlm), conformance.difference

    def checked(*args):
        with vlm.visiting({SITE: edit}):
            vlm.run(x)
        return own(*args)

    monkeypatch.setattr(conformance, "difference", checked)
    with ThreadPoolExecutor(1) as pool:
        edit = Beside(pool, lambda: vlm.run(x))
        li.wrap(vlm.model)
        assert torch.equal(edit.begun[0].result(), vlm.run(x)) and not edit.early


@pytest.mark.parametrize("asked", ["provenance", "fingerprint", "identity"])
def test_weights_that_a_pass_has_fetched_are_those_of_the_model(asked):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_llava()
    accelerate.cpu_offload(model, "cpu")
    vlm = li.wrap(model)
    x, inner = tiny_inputs(vlm), "blocks.0.mlp.hook_post"
    captured = vlm.capture(x, "hook_embed")
    ask = {
        "provenance": lambda: captured.provenance.weights,
        "fingerprint": lambda: vlm.fingerprint,
        "identity": lambda: vlm.identity,
    }[asked]
    with ThreadPoolExecutor(1) as pool:
        edit = Beside(pool, ask)
        vlm.capture(x, inner, edits={inner: edit})
        assert edit.begun[0].result() == vlm.fingerprint and not edit.early
