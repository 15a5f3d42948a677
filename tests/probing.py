"""Made-up features and labels for the tests of probes."""

import torch

QUICK = {"permutations": 0, "bootstrap": 0, "l2": 1.0}
"""Options that leave out what takes time."""


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(examples=120, sites=6, dim=5, holds=(3,), classes=2, seed=0):
    """Features of noise, and labels that the sites in `holds` hold linearly."""
    x, y = drawn(examples, sites, dim, seed=seed), torch.arange(examples) % classes
    for site in holds:
        x[torch.arange(examples), site, y] += 3
    return x, y
