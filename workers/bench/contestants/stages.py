"""Where each microsecond goes: the steps of the delivery layer one by one, without a broker."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from nnsec.adapters import outbox
from nnsec.adapters.records import Out, Record
from streams.intake import Intake, record
from workers.bench.contestants.work import HEADERS, MAX_BATCH, encode, verdict

SIZE = 784
PLACE = TopicPartition("inputs", 0)
ROUNDS = 51
_HEADERS = tuple(HEADERS)


def fetched() -> bytes:
    """One batch of inputs as the broker sends it."""
    builder = BatchBuilder(16 * 1024 * 1024, 0)
    for i in range(MAX_BATCH):
        builder.append(timestamp=0, key=b"%d" % i, value=encode(i, SIZE))
    return bytes(builder._build())  # noqa: SLF001 - as the producer does


def decoded(raw: bytes) -> list[Any]:
    """What the client library makes of it."""
    found = PartitionRecords(PLACE, MemoryRecords(raw), None, 0, None, None, True, 0)
    return list(found)


def queued(messages: Sequence[Any]) -> Sequence[Any]:
    """Through the queue and out again."""
    intake = Intake(8 * MAX_BATCH)
    intake.admit(frozenset({tuple(PLACE)}))
    intake.put(intake.epoch, {PLACE: messages})
    # Nothing is waited for, so one step of the coroutine ends it.
    try:
        intake.take(MAX_BATCH, 0.0, 1).send(None)
    except StopIteration as ended:
        found: Sequence[Any] = ended.value.messages
        return found
    raise AssertionError("the queue was empty")


def processed(records: Sequence[Record]) -> list[Out]:
    """The work of the contestants."""
    return [Out("scores", verdict(r.value or b"", r.offset), r.key, _HEADERS) for r in records]


def written(outs: Sequence[Out]) -> None:
    """Into one batch."""
    outbox._fill(BatchBuilder(16 * 1024 * 1024, 0), outs)  # noqa: SLF001 - the step itself


def main() -> None:
    """Print the processor time of each step for one record (µs), median of some rounds."""
    raw = fetched()
    messages = decoded(raw)
    records = [record(message, "") for message in messages]
    outs = processed(records)
    steps: dict[str, Callable[[], object]] = {
        "aiokafka decodes the fetch": lambda: decoded(raw),
        "queue, ledger, bounds": lambda: queued(messages),
        "records without aiokafka": lambda: [record(message, "") for message in messages],
        "the work: head check, verdict": lambda: processed(records),
        "dealing out to partitions": lambda: outbox._sorted(outs, {"scores": 4}),  # noqa: SLF001
        "writing the batch": lambda: written(outs),
    }
    found = {name: median(_spent(step) for _ in range(ROUNDS)) for name, step in steps.items()}
    sys.stdout.write(json.dumps(found) + "\n")


def _spent(step: Callable[[], object]) -> float:
    began = time.process_time()
    step()
    return (time.process_time() - began) / MAX_BATCH * 1e6


if __name__ == "__main__":
    asyncio.set_event_loop(asyncio.new_event_loop())
    main()
