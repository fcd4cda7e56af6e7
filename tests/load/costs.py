"""What each shared part costs, in CPU time: ``python -m tests.load.costs`` prints a table.

CPU time and not the clock, so that it holds on a machine that does other work; the best of several.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import numpy as np
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from nnsec.adapters.batches import Records
from nnsec.adapters.records import Record
from nnsec.settings import Budget, Limits, parse
from nnsec.watch import Watch
from schemas.base import from_millis
from schemas.inference import Expected, decode_request, encode_request
from schemas.model_status import ModelStatus, ServedModel
from schemas.summary import INPUT_ROW, Summary
from streams.agent import Context
from streams.correlate import CorrelateAgent
from tests.load.crowd import REFERENCE
from tests.load.test_alerts import storm

LOG = UUID(int=8)
ROWS = 2048


def best(work: Callable[[], object], times: int = 5) -> float:
    """The least CPU time that something took (s)."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def honest(first: int, clients: int) -> Summary:
    """Rows of so many honest clients."""
    rng = np.random.default_rng(first)
    rows = np.zeros(ROWS, INPUT_ROW)
    rows["offset"] = first + np.arange(ROWS)
    rows["subject"] = rng.integers(0, clients, ROWS)
    rows["prediction"] = rng.integers(0, 10, ROWS)
    rows["confidence"], rows["p_value"] = rng.random(ROWS), 0.5
    rows["level"] = rng.choice(3, ROWS, p=(0.95, 0.04, 0.01))
    rows["fingerprint"] = rng.integers(1, 2**63, ROWS)
    return Summary.pack(
        rows, kind="input", log=LOG, topic="inference.inputs", model="digits", model_version="1",
        time=from_millis(0), subjects=tuple(f"client-{i}" for i in range(clients)),
    )  # fmt: skip


def decoding(rows: int) -> float:
    """Microseconds an input, of records with so many."""
    models = {"mnist": Expected("mnist", (1, 28, 28), "uint8", 0, 255)}
    x = np.zeros((rows, 1, 28, 28), np.uint8)
    value, headers = encode_request(model="mnist", x=x, client="app")
    limits = Limits()

    def work() -> None:
        for _ in range(1000):
            decode_request(
                b"k", value, headers, partition=0, offset=0, models=models, limits=limits,
                default_model="",
            )  # fmt: skip

    return best(work) / 1000 / rows * 1e6


def evidence(clients: int) -> tuple[float, float]:
    """Microseconds and bytes of summary an input, at the owner of a model."""
    watch = Watch("digits", Budget())
    parts = [honest(number * ROWS, clients) for number in range(6)]
    numbers = iter(parts)
    seconds = best(lambda: watch.apply(next(numbers), REFERENCE), len(parts))
    return seconds / ROWS * 1e6, len(parts[0].encode()) / ROWS


def reading(opened: Callable[[bytes], Any]) -> float:
    """Microseconds a record: reading a producer's batch of 512 records of 784 bytes."""
    made = DefaultRecordBatchBuilder(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0,
        batch_size=1 << 20,
    )  # fmt: skip
    for number in range(512):
        made.append(number, number, key=b"k", value=bytes(784), headers=[])
    raw = bytes(made.build())

    def work() -> None:
        for _ in range(20):
            records = opened(raw)
            while records.has_next():
                deque(records.next_batch(), maxlen=0)

    return best(work, times=20) / 20 / 512 * 1e6


async def correlating(count: int = 2000) -> float:
    """Microseconds an alert."""

    async def nothing(*_: object) -> AsyncIterator[Record]:
        return
        yield

    context = SimpleNamespace(settings=parse({}), logs={"alerts": LOG})
    agent = CorrelateAgent(cast("Context", context), nothing, nothing)
    await agent.assigned(frozenset({("alerts", 0)}))
    alerts = storm(count, seed=1)
    records = [Record("alerts", 0, n, 0, b"", a.encode()) for n, a in enumerate(alerts)]
    began = time.process_time()
    await agent.process(records)
    return (time.process_time() - began) / count * 1e6


def status(partitions: int = 12) -> int:
    """Bytes that a worker says of itself every 5 s."""
    served = ServedModel(model="digits", epoch=3, version=2, digest="0" * 64, state="active")
    said = ModelStatus(
        worker=LOG, time=from_millis(0), models=(served,), sources_version=7,
        partitions={
            name: tuple(range(partitions)) for name in ("inference.inputs", "training.samples")
        },
    )  # fmt: skip
    return len(said.encode())


def lines() -> list[str]:
    """One figure a line."""
    found = [f"decode, {rows} a record: {decoding(rows):.2f} us an input" for rows in (1, 64)]
    for name, opened in (("aiokafka's way", MemoryRecords), ("within bounds", Records)):
        found.append(f"read a producer's batch {name}: {reading(opened):.2f} us a record")
    for clients in (10, 100, 1000):
        cost, size = evidence(clients)
        found.append(f"evidence, {clients} clients: {cost:.1f} us, {size:.0f} bytes an input")
    found.append(f"correlator: {asyncio.run(correlating()):.0f} us an alert")
    found.append(f"a worker's status: {status()} bytes every 5 s")
    return found


if __name__ == "__main__":
    print("\n".join(lines()))  # noqa: T201 - what it is for
