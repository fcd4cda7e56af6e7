"""The drift of the checkpoints that score one model's inputs.

What is restored waits as bytes until a row of its checkpoint comes, because the reference comes
with it; it counts as kept all the while, so that a restart neither ends a drift nor keeps one.

A checkpoint that another has replaced drifts no more, though no calm windows of it can come: else a
drift would outlast the checkpoint that mends it. If it scores again, as after a rollback, its drift
goes on from where it was.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnsec.drift import Drift, Reference, open_in
from nnsec.errors import DigestMismatch
from nnsec.evidence import Allowance

logger = logging.getLogger(__name__)

VERSIONS = 2
"""Checkpoints whose drift is kept: around a swap two of them score."""
REPLACED_MS = 60_000
"""Stream time over which another checkpoint's inputs come, and none of this one, until it counts as
replaced. No worker scores with a checkpoint for longer than 10 s after another was activated, and a
timestamp is at most 5 s ahead of the clock. Which checkpoint scores is not for clients to choose,
so none of them can end a drift by it.
"""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A drift whose checkpoint has had no row since the restart."""

    raw: bytes
    open: bool

    def snapshot(self) -> bytes:
        return self.raw


class Versions:
    """The drifts of one model, and what they may spend together.

    Parameters
    ----------
    inputs, labels:
        Allowances of a window of inputs and of a window of labels; all checkpoints draw from them.

    Attributes
    ----------
    late:
        Labels that were passed over, as their checkpoint was not kept.
    """

    def __init__(self, *, inputs: Allowance, labels: Allowance) -> None:
        self._spent = (inputs, labels)
        self._drifts: OrderedDict[str, Drift | _Stored] = OrderedDict()
        # First and last time of another's input since the last input of a checkpoint.
        self._others: dict[str, tuple[int, int]] = {}
        self.late = 0

    def __iter__(self) -> Iterator[str]:
        """The checkpoints kept; the one whose last input is oldest comes first."""
        return iter(self._drifts)

    def drift(self, version: str, reference: Reference) -> Drift:
        """The drift that an input belongs to; beyond two the one longest without an input goes.

        Raises
        ------
        ConfigError
            If the reference has no tier.
        """
        found = self._ready(version, reference)
        self._drifts[version] = found
        self._drifts.move_to_end(version)
        while len(self._drifts) > VERSIONS:
            gone, _ = self._drifts.popitem(last=False)
            self._others.pop(gone, None)
        return found

    def labelled(self, version: str, reference: Reference) -> Drift | None:
        """The drift that a label belongs to; None, and counted, if its checkpoint is not kept.

        Labels come late, of checkpoints long replaced: they neither bring one back nor say which
        goes.
        """
        if version not in self._drifts:
            self.late += 1
            return None
        found = self._drifts[version] = self._ready(version, reference)
        return found

    def _ready(self, version: str, reference: Reference) -> Drift:
        """The drift that is kept, taken up if it was only stored; else a new one."""
        kept = self._drifts.get(version)
        if isinstance(kept, Drift):
            return kept
        inputs, labels = self._spent
        found = Drift(reference, inputs=inputs, labels=labels)
        if kept is not None:
            try:
                found.restore(kept.raw)
            except DigestMismatch as error:
                logger.warning("the drift of version %s begins anew: %s", version, error)
                return Drift(reference, inputs=inputs, labels=labels)
        return found

    def scored(self, version: str, now: int) -> None:
        """Note that a checkpoint has scored an input, at stream time ``now`` (ms)."""
        self._others.pop(version, None)
        for other in self._drifts:
            if other != version:
                first, _ = self._others.get(other, (now, now))
                self._others[other] = (first, now)

    def replaced(self, version: str) -> bool:
        """Whether others have scored for a minute, and this checkpoint has not."""
        first, last = self._others.get(version, (0, 0))
        return last - first >= REPLACED_MS

    @property
    def drifting(self) -> bool:
        """Whether drift is open for a checkpoint that has not been replaced."""
        return any(d.open and not self.replaced(version) for version, d in self._drifts.items())

    def state(self) -> dict[str, Any]:
        """Plain values for JSON, beside `snapshots`."""
        return {
            "drifts": list(self._drifts),
            "others": [[version, *times] for version, times in self._others.items()],
            "late": self.late,
            "spent": [allowance.state() for allowance in self._spent],
        }

    def snapshots(self) -> list[bytes]:
        """The state of each drift, in the order of ``state()["drifts"]``."""
        return [drift.snapshot() for drift in self._drifts.values()]

    def restore(self, state: Mapping[str, Any], snapshots: Sequence[bytes]) -> None:
        """Take up what `state` and `snapshots` gave.

        Raises
        ------
        DigestMismatch
            If the bytes of a drift are not what was written; nothing was changed then.
        """
        stored = [_Stored(raw, open_in(raw)) for raw in snapshots]
        # What an earlier nnsec wrote may hold more of them, oldest first.
        kept = list(zip(state["drifts"], stored, strict=True))[-VERSIONS:]
        self._drifts = OrderedDict(kept)
        self._others = {name: (first, last) for name, first, last in state.get("others", ())}
        self.late = state.get("late", 0)
        for allowance, spent in zip(self._spent, state["spent"], strict=True):
            allowance.restore(spent)
