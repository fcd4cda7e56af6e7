"""A crowd of distinct clients: memory is bounded, what is pushed out is counted, suspects stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nnsec.adapters.records import Record
from nnsec.bets import Bets, Levels
from nnsec.evidence import REACH, SLOT, Allowance, Evidence
from nnsec.settings import parse
from streams.agent import Context
from streams.evidence import EVICTED, EvidenceAgent
from tests.load.crowd import LOG, REFERENCE, summary

ROOT = Path(__file__).parents[2]
BETS = Bets.against(Levels.certified(400), version="1")
MB = 2**20


def measured(clients: int, most: int) -> dict[str, Any]:
    """The figures of a process of its own, whose memory nothing else shares."""
    command = [sys.executable, "-m", "tests.load.crowd", str(clients), str(most)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("clients", "most"),
    [
        pytest.param(110_000, 100_000, id="short"),
        pytest.param(
            1_050_000, 1_000_000, id="full", marks=[pytest.mark.full, pytest.mark.timeout(900)]
        ),
    ],
)
def test_a_crowd_of_clients_is_bounded_in_memory(
    shown: Callable[..., None], clients: int, most: int
) -> None:
    """State 128 bytes each, 500 in all with what finds it and its snapshot; the rest is counted.

    Caught, for example: a table that grows with the names ever seen.
    """
    found = measured(clients, most)
    assert found["clients"] == most
    assert found["evicted"] == clients - most
    assert found["state"] <= 128 * most
    fixed = 12 * MB  # libraries and tables that do not grow with the clients
    peak = max(found["peak"], found["with_snapshot"])
    assert peak <= 500 * most + fixed
    shown(15, "none", 0, clients=clients, kept=most, evicted=found["evicted"], MB=round(peak / MB))


def test_suspects_outlast_a_flood_of_new_names() -> None:
    """Ten times as many names as there is room for push out none of those with evidence."""
    state = Evidence(Allowance(weight=1e-6, daily=1.0), capacity=2000)
    suspects = [f"suspect-{i}" for i in range(40)]
    for number, name in enumerate(suspects):
        for i in range(2):
            state.update(name, 5, 1000 * number + i, BETS, now=0)
    before = {name: state.evidence(name) for name in suspects}
    for i in range(20_000):
        state.update(f"new-{i}", 0, 1, BETS, now=0)
    assert state.evicted == 20_000 - (2000 - len(suspects))
    assert {name: state.evidence(name) for name in suspects} == before
    assert min(before.values()) > 0


@pytest.mark.parametrize("capacity", [1, REACH - 1, REACH, REACH + 1, 3 * REACH])
def test_a_full_table_stays_whole(capacity: int) -> None:
    """Whatever its size, each eviction takes one name out and lets one in."""
    state = Evidence(Allowance(weight=1e-4, daily=1.0), capacity=capacity)
    for i in range(5 * capacity):
        state.update(f"c{i}", i % 3, i, BETS, now=0)
        assert state.evidence(f"c{i}") > 0
    assert len(state) == capacity
    assert state.evicted == 4 * capacity
    known = sum(state.evidence(f"c{i}") > 0 for i in range(5 * capacity))
    assert known == capacity
    resumed = Evidence(Allowance(weight=1e-4, daily=1.0), capacity=capacity)
    resumed.restore(state.snapshot())
    for i in range(5 * capacity, 6 * capacity):
        for one in (state, resumed):
            one.update(f"c{i}", i % 3, i, BETS, now=0)
    assert resumed.snapshot() == state.snapshot()


def test_the_state_of_a_client_is_128_bytes() -> None:
    """As promised; a field more would be noticed here."""
    assert SLOT.itemsize == 128


async def test_evictions_are_shown_in_a_metric() -> None:
    """By model, as the operators see them."""
    checkpoints = SimpleNamespace(calibration=lambda model, version: REFERENCE)
    settings = parse({"budget": {"max_clients": 100}})
    context = SimpleNamespace(settings=settings, logs={"summaries": LOG}, checkpoints=checkpoints)
    agent = EvidenceAgent(cast("Context", context))

    found = summary(0, 250, np.random.default_rng(1))
    await agent.process([Record("summaries", 0, 0, 0, b"digits", found.encode())])
    assert EVICTED.labels("digits")._value.get() == 150
