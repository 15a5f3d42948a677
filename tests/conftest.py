"""What holds for every test: no network, no screen, and shapes and types checked at run time."""

import os

# Set before anything imports torch, transformers or matplotlib.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# One thread: the same sums, in the same order, whatever else the machine does; `make test` runs two workers.
THREADS = os.environ.setdefault("TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = THREADS  # for the processes that tests start

from tests import typed

# Before the first import of the package. Users do not pay for it.
typed.install()

import torch

torch.set_num_threads(int(THREADS))

import pytest


@pytest.fixture(scope="session")
def reference():
    """The reference model, built on first use."""
    import lvlm_interp

    return lvlm_interp.load("reference")


@pytest.fixture(scope="session")
def purple_banana(reference):
    """The question of the introduction: the model knows that bananas are yellow, and sees a purple one."""
    from lvlm_interp.reference import make_scene

    scene = make_scene(4, objects=["banana", "cat"], colors=["purple", None])
    return reference.prepare("What color is the banana?", scene.image, answer="Purple.")


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command line in this process; returns its status, output and complaints."""
    import sys

    from lvlm_interp import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lvlm-interp", *map(str, arguments)])
        capfd.readouterr()  # what was printed before the call is not the command's
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call
