"""What a crowd of distinct clients costs; run in a process of its own, it prints its figures.

``python -m tests.load.crowd CLIENTS MOST``: so many clients, of whom so many are remembered.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from nnsec.bets import Bets, Levels
from nnsec.drift import Reference
from nnsec.settings import Budget
from nnsec.watch import Watch
from schemas.base import from_millis
from schemas.summary import INPUT_ROW, Summary

ROWS = 8192
LOG = UUID(int=7)
REFERENCE = Reference((Levels.certified(400),), None, 0.01, 10, 400, (0.1,) * 10)


def resident() -> int:
    """Bytes of memory that this process holds."""
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * 4096


def summary(first: int, count: int, rng: np.random.Generator) -> Summary:
    """One input each of so many new clients, some of which pass a level or two."""
    rows = np.zeros(count, INPUT_ROW)
    rows["offset"] = first + np.arange(count)
    rows["subject"] = np.arange(count)
    rows["prediction"] = rng.integers(0, 10, count)
    rows["confidence"], rows["p_value"] = 0.9, 0.5
    rows["level"] = rng.choice(3, count, p=(0.95, 0.04, 0.01))
    rows["fingerprint"] = rng.integers(1, 2**63, count)
    return Summary.pack(
        rows, kind="input", log=LOG, topic="inference.inputs", model="digits", model_version="1",
        time=from_millis(1_700_000_000_000), subjects=tuple(f"client-{first + i}"
                                                            for i in range(count)),
    )  # fmt: skip


def crowd(clients: int, most: int) -> dict[str, Any]:
    """Figures of a watch after one input each of so many clients; nothing else of it grows."""
    watch = Watch("digits", Budget(max_clients=most))
    bets = Bets.against(REFERENCE.tiers[0], version="1")
    watch.apply(summary(0, min(ROWS, clients), np.random.default_rng(0)), REFERENCE)
    before = peak = resident()
    for number in range(ROWS, clients):
        fingerprint = number * 0x9E3779B97F4A7C15 & (2**64 - 1)
        level = (number % 20 == 0) + (number % 100 == 0)
        watch.clients.update(f"client-{number}", level, fingerprint, bets, now=0)
        if number % ROWS == 0:
            peak = max(peak, resident())
    after = resident()
    size = len(watch.snapshot())
    return {
        "clients": len(watch.clients), "evicted": watch.clients.evicted,
        "state": watch.clients.nbytes, "resident": after - before, "peak": peak - before,
        "with_snapshot": resident() - before, "snapshot": size, "process": resident(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(crowd(int(sys.argv[1]), int(sys.argv[2]))))  # noqa: T201 - what it is for
