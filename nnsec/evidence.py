"""Evidence: what a subject's inputs say about it, so that false accusations fit the budget.

Nothing else opens an evasion incident. Each subject and (level, bet) holds ``M ← (M + w) · e``; the
evidence is the mean of the M, and at 1 it alarms and all M return to 0. Expected false alarms are
at most the sum of the ``w`` handed out, however subjects depend on each other, for subjects whose
honest inputs (repeats counted once) pass each threshold at most at its rate given their past.

Source: Shin, Ramdas and Rinaldo, "E-detectors" (2024); the certified rates: Bates and others,
"Testing for outliers with conformal p-values" (2023).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.allowance import Allowance
from nnsec.bets import CELLS, LEVELS, Bets, Levels
from nnsec.repeats import Repeats
from nnsec.sealed import seal, unseal

BOUND = 1.0
QUIET = 1e-3
"""Below this evidence the figures of a subject's stretch start again."""
REACH = 256
"""Subjects among which the one with the least evidence goes when the table is full."""
TAGS = 4
ANONYMOUS = "anonymous"

SLOT = np.dtype(
    [
        ("m", "<f4", (CELLS,)),
        ("evidence", "<f4"),
        ("key", "V16"),               # digest of the subject's id
        ("recent", "<u8", (3,)),      # newest fingerprints; a flood of others cannot push them out
        ("inputs", "<u4"),            # of the stretch since the evidence was last near 0
        ("passed", "<u2", (len(LEVELS),)),
        ("tags", "<u2", (TAGS,)),     # what the rows of the stretch were suspected of
        ("era", "<u2"),               # which checkpoint's bets the M were made with
    ]
)  # fmt: skip
"""All that is kept of a subject: 128 bytes."""


def step(
    m: NDArray[np.float32],
    factors: NDArray[np.float32],
    used: NDArray[np.float32],
    weight: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Advance any number of subjects by one input each.

    Parameters
    ----------
    m:
        (…, 15) state, changed in place.
    factors:
        (…, 15) e-values of each subject's input: rows of `Bets.factors`.
    used:
        (15,) weights of the mean.
    weight:
        The w handed to each.

    Returns
    -------
    m:
        The state; all 0 where it alarmed.
    evidence:
        (…) evidence before the return to 0; an alarm where it is at least 1.
    """
    m += np.float32(weight)
    m *= factors
    evidence: NDArray[np.float32] = np.asarray((m * used).sum(-1, dtype=np.float32))
    m[evidence >= BOUND] = 0
    return m, evidence


@dataclass(frozen=True, slots=True)
class Crossing:
    """A subject's evidence reached the bound, with the figures of the stretch that led there."""

    evidence: float
    inputs: int
    passed: tuple[int, ...]
    tags: tuple[int, ...]


class Evidence:
    """The evidence on all subjects of one model and one kind.

    Parameters
    ----------
    allowance:
        Where the w of each input come from.
    capacity:
        Subjects kept; when full, the one with the least evidence in the next part of the table
        goes, so that a flood of new names costs no look at all of it.
    memory:
        Further (subject, fingerprint) pairs remembered over all subjects.
    """

    def __init__(self, allowance: Allowance, *, capacity: int, memory: int = 1 << 15) -> None:
        self.allowance = allowance
        self.capacity = capacity
        self.evicted = 0
        self.repeated = 0
        self.unnamed = 0
        """Inputs of nobody by name since this began; not in a snapshot."""
        self._slots = np.zeros(min(capacity, 64), SLOT)
        self._index: dict[bytes, int] = {}
        self._memory = Repeats(memory)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of state, the shared memory of fingerprints aside."""
        return len(self._index) * SLOT.itemsize

    def evidence(self, subject: str) -> float:
        """The evidence on a subject now; 0 for an unknown one."""
        slot = self._index.get(_key(subject))
        return 0.0 if slot is None else float(self._slots["evidence"][slot])

    def update(
        self, subject: str, level: int, fingerprint: int, bets: Bets, *, now: int, tag: int = -1
    ) -> tuple[bool, Crossing | None]:
        """Take in one input, in log order.

        Parameters
        ----------
        subject:
            Whose input it is; ``anonymous`` is never judged.
        level:
            Thresholds passed, 0 to J.
        fingerprint:
            Equal for inputs that are to count once.
        bets:
            Of the input's checkpoint and tier.
        now:
            Stream time, ms.
        tag:
            What the row is suspected of, 0 to 3; −1 for nothing in particular.

        Returns
        -------
        counted:
            False for a repeat, which adds nothing.
        crossing:
            Set if the evidence reached the bound.
        """
        self.unnamed += subject == ANONYMOUS
        key = _key(subject)
        slot = self._index.get(key)
        if self._repeats(key, slot, fingerprint):
            self.repeated += 1
            return False, None
        if subject == ANONYMOUS:
            return True, None
        if slot is None:
            slot = self._admit(key, bets.era)
        row = self._slots[slot]
        recent = row["recent"]
        recent[1:] = recent[:-1].copy()
        recent[0] = fingerprint
        return True, self._advance(row, min(level, len(bets.rates)), bets, now, tag)

    def _advance(self, row: Any, level: int, bets: Bets, now: int, tag: int) -> Crossing | None:
        m = row["m"]
        if row["era"] != bets.era:  # keeps the mean, whatever cells count in it from now on
            m[:] = row["evidence"]
            row["era"] = bets.era
        if row["evidence"] < QUIET:
            row["inputs"], row["passed"], row["tags"] = 0, 0, 0
        row["inputs"] += 1
        if level:
            passed = row["passed"][len(bets.rates) - level : len(bets.rates)]
            passed += (passed < 0xFFFF).astype(np.uint16)
        if 0 <= tag < TAGS and row["tags"][tag] < 0xFFFF:
            row["tags"][tag] += 1
        _, evidence = step(m, bets.factors[level], bets.used, self.allowance.draw(now))
        value = float(evidence)
        if value < BOUND:
            row["evidence"] = value
            return None
        row["evidence"] = 0
        return Crossing(
            value,
            int(row["inputs"]),
            tuple(row["passed"].tolist()[: len(bets.rates)]),
            tuple(row["tags"].tolist()),
        )

    def _repeats(self, key: bytes, slot: int | None, fingerprint: int) -> bool:
        known = self._memory.seen(key, fingerprint)  # always, so that it knows of this sight too
        return known or (slot is not None and fingerprint in self._slots["recent"][slot].tolist())

    def _admit(self, key: bytes, era: int) -> int:
        slot = len(self._index)
        if slot >= self.capacity:
            start = self.evicted * REACH % max(1, self.capacity - REACH + 1)
            slot = start + int(self._slots["evidence"][start : start + REACH].argmin())
            del self._index[self._slots["key"][slot].tobytes()]
            self.evicted += 1
        elif slot >= len(self._slots):
            grown = np.zeros(min(self.capacity, 2 * len(self._slots)), SLOT)
            grown[: len(self._slots)] = self._slots
            self._slots = grown
        self._slots[slot] = np.zeros((), SLOT)
        self._slots["key"][slot] = np.void(key)
        self._slots["era"][slot] = era
        self._index[key] = slot
        return slot

    def clear(self) -> None:
        """Return all M to 0, as when drift is found: what led there was everyone's."""
        self._slots["m"] = 0
        self._slots["evidence"] = 0

    def snapshot(self) -> bytes:
        """All of the state, with a digest; no pickle."""
        counters = np.array([*self.allowance.state(), self.evicted, self.repeated], np.int64)
        return seal(
            counters=counters, slots=self._slots[: len(self._index)].view(np.uint8),
            memory=self._memory.state(),
        )  # fmt: skip

    def restore(self, snapshot: bytes) -> None:
        """Take up a snapshot.

        Raises
        ------
        DigestMismatch
            If its bytes are not what was written.
        """
        arrays = unseal(snapshot)
        *spent, self.evicted, self.repeated = arrays["counters"].tolist()
        self.allowance.restore(spent)
        slots = arrays["slots"].view(SLOT)
        self._slots = np.zeros(max(len(slots), min(self.capacity, 64)), SLOT)
        self._slots[: len(slots)] = slots
        self._index = {key.tobytes(): slot for slot, key in enumerate(slots["key"])}
        self._memory.restore(arrays["memory"])


def _key(subject: str) -> bytes:
    return hashlib.blake2b(subject.encode(), digest_size=16, usedforsecurity=False).digest()


__all__ = ["ANONYMOUS", "Allowance", "Bets", "Crossing", "Evidence", "Levels", "step"]
