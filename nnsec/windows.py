"""Windows of votes: one client, one vote, judged against an interval.

A window is a number of inputs in log order. In it each client has one vote a signal: the share of
its inputs that show the signal. For each signal an e-detector bets that the votes lie outside what
calibration allows: ``M ← (M + w) · Π (1 + f (v/u − 1))`` over the votes v, u the interval's bound,
f a few fixed stakes; the product is an e-value if each vote, given those before it, has a mean
within the interval (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting",
2023). The fifth of the clients that stood out most in the windows *before* has no vote, so that a
client cannot make a drift alone; the choice is made from the past, so the e-values stay valid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.change import Change
from nnsec.evidence import BOUND, Allowance
from nnsec.signals import NOWHERE, Place, Shift, Signal

HISTORY = 4
"""Windows that the pooled rates are taken over."""
OUTLYING = 0.2
"""Share of the clients that is left out as the few who may hold an excess."""
FEWEST = 3
"""Clients from which on something can be said about what all show."""
STAKES = np.array([0.15, 0.4, 0.8])
CAP = 1e30
IDLE = 3.0
"""A signal's evidence up to this many times its w is where honest votes keep it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Votes:
    keys: NDArray[np.uint64]
    votes: NDArray[np.float64]


class Panel:
    """All signals of one kind of rows of one model.

    Parameters
    ----------
    signals:
        What is watched; every row brings a value in [0, 1] for each.
    size:
        Inputs in a window.
    allowance:
        Where the w of each window come from.
    anonymous:
        The key of rows without a client: one client, unless there are no others.
    """

    def __init__(
        self, signals: Sequence[Signal], *, size: int, allowance: Allowance, anonymous: int = 0
    ) -> None:
        self.signals = tuple(signals)
        self.size = size
        self.windows = 0
        self.allowance = allowance
        self._anonymous = anonymous
        count = len(self.signals)
        self._high = np.clip([s.high for s in signals], 1e-9, 1.0)
        self._low = np.clip([s.low for s in signals], 0.0, 1.0)
        self._weights = np.array([s.weight for s in signals])
        two = self._low > 0  # nothing is bet under a bound of 0, and no allowance spent on it
        self._sides = np.where(two[:, None], 0.5, [1.0, 0.0])[:, :, None]
        self._keys = np.zeros(size, np.uint64)
        self._values = np.zeros((size, count))
        self._filled = 0
        self._m = np.zeros((count, 2, len(STAKES)))
        self._history: deque[_Votes] = deque(maxlen=HISTORY)
        self._change = [Change() for _ in signals]
        self._found = np.full((count, 2), -HISTORY - 1)  # window of the last adwin, page_hinkley
        self._first: Place = NOWHERE
        self._since: list[Place] = [NOWHERE] * count

    @property
    def evidence(self) -> NDArray[np.float64]:
        """(signals,) evidence that each is outside its interval; an alarm at 1."""
        found: NDArray[np.float64] = self._m.mean(-1).max(-1)
        return found

    def add(self, key: int, values: NDArray[np.float64], place: Place) -> list[Shift] | None:
        """Take in one row, in log order.

        Returns
        -------
        shifts:
            None within a window; at its end, the signals that are found outside their interval.
        """
        if self._filled == 0:
            self._first = place
        self._keys[self._filled] = key
        self._values[self._filled] = values
        self._filled += 1
        if self._filled < self.size:
            return None
        self._filled = 0
        return self._close(place[-1])

    def _close(self, now: int) -> list[Shift]:
        keys, votes = _votes(self._keys, self._values)
        if len(keys) == 1 and int(keys[0]) == self._anonymous:
            keys, votes = np.arange(self.size, dtype=np.uint64), self._values.copy()
        voting = self._voting(keys)
        weights = self.allowance.draw(now) * self._weights
        idle = self.evidence <= IDLE * self.allowance.weight * self._weights
        self._since = [self._first if idle[i] else since for i, since in enumerate(self._since)]
        self._m = np.minimum(
            (self._m + weights[:, None, None] * self._sides) * self._bet(votes, voting), CAP
        )
        self._history.append(_Votes(keys, votes))
        self.windows += 1
        for i, change in enumerate(self._change):
            found = change.update(votes[voting[:, i], i].tolist())
            for which, name in enumerate(("adwin", "page_hinkley")):
                if name in found:
                    self._found[i, which] = self.windows
        return self._judge()

    def _bet(self, votes: NDArray[np.float64], voting: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(signals, 2, stakes) e-values of a window, against the upper and the lower bound."""
        over = votes / self._high - 1
        under = np.where(self._low > 0, (self._low - votes) / (1 - self._low + 1e-12), 0.0)
        sides = np.stack([over, under], axis=-1)  # (clients, signals, 2), each at least -1
        factors = 1 + STAKES * sides[..., None]
        product: NDArray[np.float64] = np.where(voting[:, :, None, None], factors, 1.0).prod(0)
        return np.minimum(product, CAP)

    def _voting(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(clients, signals): not those that stood out most in the windows before."""
        voting = np.ones((len(keys), len(self.signals)), bool)
        if not self._history:
            return voting
        known, mean = self._pool()
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        past = np.where((known[place] == keys)[:, None], self._excess(mean)[place], 0.0)
        few = _few(len(keys))
        worst = np.argsort(-past, axis=0, kind="stable")[:few]
        np.put_along_axis(voting, worst, np.take_along_axis(past, worst, 0) <= 0, 0)
        return voting

    def _excess(self, votes: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far each vote lies outside the interval."""
        outside: NDArray[np.float64] = np.maximum(votes - self._high, self._low - votes)
        return np.maximum(outside, 0.0)

    def _pool(self, span: int = HISTORY) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Each client's mean vote over the newest windows."""
        newest = list(self._history)[-span:]
        return _votes(
            np.concatenate([v.keys for v in newest]), np.concatenate([v.votes for v in newest])
        )

    def rest(self) -> NDArray[np.float64]:
        """(signals,) mean vote now, without the fifth of the clients with the largest votes.

        The larger of two spans, so that it follows a slow rise. 0 while there are fewer than three
        clients: nothing can be said about what all show.
        """
        rest = np.zeros(len(self.signals))
        for span in (HISTORY, HISTORY // 2):
            if self._history:
                _, mean = self._pool(span)
                if len(mean) >= FEWEST:
                    kept = np.sort(mean, axis=0)[: len(mean) - _few(len(mean))]
                    rest = np.maximum(rest, kept.mean(0))
        return rest

    def outside(self) -> bool:
        """Whether any signal's pooled vote, without the outlying fifth, is outside now."""
        if not self._history:
            return False
        _, mean = self._pool()
        return any(self._measure(i, mean[:, i])[1] for i in range(len(self.signals)))

    def _measure(self, index: int, votes: NDArray[np.float64]) -> tuple[float, bool, float, int]:
        """Of one signal: rest, whether that is outside, the top's share, clients outside."""
        low, high = self._low[index], self._high[index]
        excess = np.maximum(np.maximum(votes - high, low - votes), 0.0)
        order = np.argsort(-excess, kind="stable")
        few = _few(len(votes))
        # of clients that are all within, none stands out
        top = order[:few][excess[order[:few]] > 0]
        kept = np.delete(votes, top)
        rest = float(kept.mean()) if len(kept) else 0.5 * float(low + high)
        share = float(excess[top].sum() / excess.sum()) if excess.any() else 0.0
        return rest, bool(rest > high or rest < low), share, int((excess > 0).sum())

    def state(self) -> dict[str, NDArray[Any]]:
        """All that `restore` needs, as arrays; not the allowance, which others draw from too."""
        change = [c.state() for c in self._change]
        places = [self._first, *self._since]
        return {
            "counters": np.array([self._filled, self.windows], np.int64),
            "keys": self._keys[: self._filled], "values": self._values[: self._filled],
            "m": self._m, "found": self._found,
            "cuts": np.array([len(v.keys) for v in self._history], np.int64),
            "history_keys": np.concatenate([v.keys for v in self._history] or [self._keys[:0]]),
            "history_votes": np.concatenate([v.votes for v in self._history] or [self._values[:0]]),
            "place_names": np.array([p[:2] for p in places]),
            "place_numbers": np.array([p[2:] for p in places], np.int64),
            "adwin": np.concatenate([raw for raw, _ in change]),
            "adwin_cuts": np.array([len(raw) for raw, _ in change], np.int64),
            "hinkley": np.stack([numbers for _, numbers in change]),
        }  # fmt: skip

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `state` gave, of a panel with the same signals; a ValueError of another."""
        if state["m"].shape != self._m.shape or state["found"].shape != self._found.shape:
            raise ValueError("the state is of other signals")
        # What once followed these two was the allowance, as it stood when this was written.
        self._filled, self.windows = (int(v) for v in state["counters"][:2])
        self._keys[: self._filled] = state["keys"]
        self._values[: self._filled] = state["values"]
        self._m, self._found = state["m"].copy(), state["found"].copy()
        self._history.clear()
        if len(state["cuts"]):
            cuts = np.cumsum(state["cuts"])[:-1]
            keys = np.split(state["history_keys"], cuts)
            votes = np.split(state["history_votes"], cuts)
            self._history.extend(map(_Votes, keys, votes))
        places: list[Place] = [
            (str(log), str(topic), *(int(v) for v in numbers))  # type: ignore[misc]
            for (log, topic), numbers in zip(
                state["place_names"], state["place_numbers"], strict=True
            )
        ]
        self._first, self._since = places[0], places[1:]
        raws = np.split(state["adwin"], np.cumsum(state["adwin_cuts"])[:-1])
        for change, raw, numbers in zip(self._change, raws, state["hinkley"], strict=True):
            change.restore(raw, numbers)

    def _judge(self) -> list[Shift]:
        """Signals whose pooled vote is outside: over the newest windows, or the newest half.

        Only at an alarm of the e-detector is one ``spread``: no other finding is within the
        allowance. What ADWIN and Page-Hinkley found lately is named beside it.
        """
        spans = [self._pool(span)[1] for span in (HISTORY, HISTORY // 2)]
        evidence = self.evidence
        shifts = []
        for i, signal in enumerate(self.signals):
            alarm = bool(evidence[i] >= BOUND)
            if alarm:
                self._m[i] = 0
            elif self.windows < HISTORY:
                continue
            # only an alarm is quick enough to be judged by the newest half
            usable = spans if alarm else spans[:1]
            moved = [m[:, i] for m in usable if not self._low[i] <= m[:, i].mean() <= self._high[i]]
            if not moved:
                continue
            found = [(votes, *self._measure(i, votes)) for votes in moved]
            votes, rest, spread, share, count = max(found, key=lambda item: item[2])
            if spread and not alarm:
                continue
            recent = self.windows - self._found[i] < HISTORY
            by = [n for n, r in zip(("adwin", "page_hinkley"), recent, strict=True) if r]
            shifts.append(
                Shift(
                    signal, "spread" if spread else "concentrated", float(evidence[i]),
                    ("interval", *by) if alarm else tuple(by),
                    float(votes.mean()), rest, len(votes), count, share, self._since[i],
                )
            )  # fmt: skip
        return shifts


def _few(clients: int) -> int:
    return max(1, int(np.ceil(OUTLYING * clients - 1e-9)))


def _votes(
    keys: NDArray[np.uint64], values: NDArray[np.float64]
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Clients in order of their keys, and the mean of each one's rows."""
    unique, inverse = np.unique(keys, return_inverse=True)
    sums = np.zeros((len(unique), values.shape[1]))
    np.add.at(sums, inverse, values)
    return unique, sums / np.bincount(inverse)[:, None]
