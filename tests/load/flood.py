"""Inputs until a client is accused, after a flood: ``python -m tests.load.flood`` shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnsec.allowance import Allowance
from nnsec.evidence import Bets, Levels, step
from nnsec.settings import Budget
from nnsec.watch import CLIENTS

SHARES = (1.0, 0.5, 0.3, 0.15)
FLOODS = (0, 1, 10, 100, 1000)
POINTS = 400
LONGEST = 2000


def found_after(share: float, flood: float, *, clients: int = 2000, seed: int = 0) -> float:
    """Median number of inputs until the evidence on a client reaches the bound.

    Parameters
    ----------
    share:
        Of attacks past every level among a client's inputs; the others pass each level as often as
        the points that calibrated it.
    flood:
        Inputs that came before on that day, by how many are expected.
    """
    rng, budget, levels = np.random.default_rng(seed), Budget(), Levels.certified(POINTS)
    bets = Bets.against(levels)
    daily = CLIENTS * budget.false_subjects_per_day
    allowance = Allowance(weight=daily / budget.expected_inputs_per_day, daily=daily)
    allowance.restore((0, int(flood * budget.expected_inputs_per_day)))
    weight = allowance.draw(0)
    nominal = np.sort(np.asarray(levels.levels))
    m = np.zeros((clients, bets.factors.shape[1]), np.float32)
    first = np.full(clients, LONGEST)
    for count in range(1, LONGEST):
        clean = (rng.random((clients, 1)) < nominal).sum(1)
        level = np.where(rng.random(clients) < share, len(nominal), clean)
        _, evidence = step(m, bets.factors[level], bets.used, weight)
        first[(evidence >= 1) & (first == LONGEST)] = count
        if (first < LONGEST).mean() > 0.6:
            break
    return float(np.median(first))


def lines(shares: Sequence[float] = SHARES, floods: Sequence[float] = FLOODS) -> list[str]:
    """One share a line, with the median after each flood."""
    return [
        f"{share:.0%}: " + ", ".join(f"{found_after(share, flood):.0f}" for flood in floods)
        for share in shares
    ]


if __name__ == "__main__":
    print("\n".join(lines()))  # noqa: T201 - what it is for
