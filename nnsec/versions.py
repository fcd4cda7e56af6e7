"""The drift of the checkpoints that score one model's inputs.

What is restored waits as bytes until a row of its checkpoint comes, because the reference comes
with it; it counts as kept all the while, so that a restart neither ends a drift nor keeps one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnsec.drift import Drift, Reference, open_in
from nnsec.evidence import Allowance

VERSIONS = 2
"""Checkpoints whose drift is kept: around a swap two of them score."""


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
    """

    def __init__(self, *, inputs: Allowance, labels: Allowance) -> None:
        self._spent = (inputs, labels)
        self._drifts: OrderedDict[str, Drift | _Stored] = OrderedDict()

    def __iter__(self) -> Iterator[str]:
        """The checkpoints kept; the one whose last row is oldest comes first."""
        return iter(self._drifts)

    def drift(self, version: str, reference: Reference) -> Drift:
        """The drift that a row belongs to; beyond two the one longest without a row goes.

        Raises
        ------
        ConfigError
            If the reference has no tier.
        """
        found = self._drifts.get(version)
        if not isinstance(found, Drift):
            inputs, labels = self._spent
            stored, found = found, Drift(reference, inputs=inputs, labels=labels)
            if stored is not None:
                found.restore(stored.raw)
            self._drifts[version] = found
        self._drifts.move_to_end(version)
        while len(self._drifts) > VERSIONS:
            self._drifts.popitem(last=False)
        return found

    @property
    def drifting(self) -> bool:
        """Whether drift is open for a checkpoint that is kept."""
        return any(drift.open for drift in self._drifts.values())

    def state(self) -> dict[str, Any]:
        """Plain values for JSON, beside `snapshots`."""
        return {
            "drifts": list(self._drifts),
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
        for allowance, spent in zip(self._spent, state["spent"], strict=True):
            allowance.restore(spent)
