"""What part of the budget each piece of evidence may add, over a day of stream time.

Nine tenths of a day's part go evenly over the times that are expected in a day, and one tenth over
all times, by weights that thin out and never reach 0. So the sum over a day stays within its part
however often it is drawn, and whoever sends more than is expected makes evidence slower, not blind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from schemas.topics import DAY_MS

EVEN = 0.9
"""Share of the day's part that is spent evenly over the expected times."""


class Allowance:
    """What part of the budget may be handed out in a day of stream time.

    The k-th w of a day is ``daily / N · (EVEN · [k ≤ N] + (1 − EVEN) · f(k / N))`` with N expected
    times and ``f(x) = 1 / ((x + e) · ln²(x + e))``. f falls, and its integral from 0 is 1; each
    step takes it at its right end, so that no number of steps sums to more.

    Parameters
    ----------
    weight:
        Mean w over the expected times of a day: share · budget / expected times.
    daily:
        The most that they sum to in a day: share · budget.

    Examples
    --------
    >>> allowance = Allowance(weight=0.01, daily=1.0)
    >>> sum(allowance.draw(0) for _ in range(100_000)) < 1
    True
    >>> allowance.draw(0) > 0, allowance.traffic
    (True, 1000.01)
    """

    def __init__(self, *, weight: float, daily: float) -> None:
        self.daily = daily
        self._even = weight
        self._expected = daily / weight
        self._day = 0
        self._times = 0

    @property
    def weight(self) -> float:
        """The w handed out last; of a day without one, the first."""
        times = max(1, self._times)
        x = times / self._expected + math.e
        even = EVEN if times <= self._expected + 1e-9 else 0.0
        return self._even * (even + (1 - EVEN) / (x * math.log(x) ** 2))

    @property
    def spent(self) -> float:
        """Handed out in the current day, at most: the integral that bounds the sum."""
        x = self._times / self._expected
        return self.daily * (EVEN * min(1.0, x) + (1 - EVEN) * (1 - 1 / math.log(x + math.e)))

    @property
    def traffic(self) -> float:
        """Times drawn in the current day ÷ times expected in a day."""
        return self._times / self._expected

    @property
    def day(self) -> int:
        """The current day of stream time, from 1970."""
        return self._day

    def draw(self, now: int) -> float:
        """The next w, at stream time ``now`` (ms); above 0."""
        day = now // DAY_MS
        if day > self._day:
            self._day, self._times = day, 0
        self._times += 1
        return self.weight

    def state(self) -> tuple[int, int]:
        """The day, and how often it was drawn."""
        return self._day, self._times

    def restore(self, state: Sequence[int]) -> None:
        """Take up what `state` gave."""
        self._day, self._times = (int(v) for v in state)
