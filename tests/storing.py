"""A store that is filled with rows that tell their own number: without a model, so that a process begins quickly."""

import numpy as np
import torch

from lvlm_interp.probes.store import on_disk

NAME, SITES, WIDTH = "rows", 3, 5
ABOUT = {"weights": "none", "sites": {NAME: ["a"] * SITES}}


def digests(first, last):
    return np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(7)


def values(first, last):
    rows, sites = torch.arange(first, last, dtype=torch.float32), torch.arange(SITES) / SITES
    return (rows[:, None, None] + sites[:, None]).expand(-1, SITES, WIDTH).contiguous()


def fill(path, count, tell=False):
    """Rows from where the store ends to a number, a few at a time."""
    with on_disk(path, ABOUT) as kept:
        while (start := len(kept)) < count:
            stop = min(start + 3, count)
            assert kept.holds(digests(0, start), 0)
            kept.add(digests(start, stop), {NAME: (values(start, stop), ("a",) * SITES)})
            if tell and start == 0:
                print("writing", flush=True)
        kept.close(count)


def rows_in(path):
    with on_disk(path, ABOUT) as kept:
        return len(kept)


def check(path, count):
    """All rows are whole, and those that they should be."""
    with on_disk(path, ABOUT) as kept:
        assert (kept.known == digests(0, count)).all() and len(kept) == count
        assert torch.equal(torch.as_tensor(kept[NAME][0][:]), values(0, count))
