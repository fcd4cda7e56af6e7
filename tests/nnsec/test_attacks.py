from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from nnsec.attacks import pgd
from nnsec.datasets import load
from nnsec.models import small_cnn


def _trained() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    data = load("digits")
    x, y = torch.from_numpy(data.x / np.float32(16)), torch.from_numpy(data.y)
    module = small_cnn()
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for start in range(0, 1200, 60):
        optimiser.zero_grad()
        functional.cross_entropy(module(x[start : start + 60]), y[start : start + 60]).backward()
        optimiser.step()
    return module.eval(), x[1200:1500], y[1200:1500]


def test_pgd_stays_within_its_radius_and_lowers_accuracy() -> None:
    """The inputs found are in [0, 1], within epsilon, and fool what noise of that size does not."""
    module, x, y = _trained()
    found = pgd(module, x, y, epsilon=0.2, steps=20, seed=1)
    assert float((found - x).abs().max()) <= 0.2 + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    clean = float((module(x).argmax(1) == y).float().mean())
    attacked = float((module(found).argmax(1) == y).float().mean())
    assert clean > 0.7
    assert attacked < clean / 3


def test_pgd_is_seeded() -> None:
    """The same seed gives the same inputs, another seed others."""
    module, x, y = _trained()
    one, same, other = (pgd(module, x[:8], y[:8], epsilon=0.1, steps=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_pgd_without_a_random_start_is_one_path() -> None:
    """Without a random start the seed has no part in it."""
    module, x, y = _trained()
    one, two = (
        pgd(module, x[:8], y[:8], epsilon=0.1, steps=2, random_start=False, step_size=0.05, seed=s)
        for s in (1, 2)
    )
    assert torch.equal(one, two)
