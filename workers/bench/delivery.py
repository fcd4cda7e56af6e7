"""The delivery layer beside a stock Faust agent and a bare loop that do the same work."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from nnsec.errors import NNSecError
from nnsec.settings import Limits
from schemas.inference import Expected, decode_request, encode_request
from workers.bench.broker import make_topics
from workers.bench.contestants import work

CONTESTANTS: dict[str, tuple[str, ...]] = {
    "nnsec": ("ours",),
    "stock Faust, take(512)": ("stock",),
    "bare getmany, send": ("bare", "send"),
    "bare getmany, send_batch": ("bare", "batches"),
}
OURS, STOCK, BARE = list(CONTESTANTS)[:3]
PARTITIONS = 4
SIZE = 784
DECODE_RECORDS = 2000
_LIMIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Rate:
    """One run of one contestant.

    Parameters
    ----------
    per_second:
        Records done, from the first that was read to the last commit.
    cpu_us:
        Processor time of its process for each record (µs).
    """

    per_second: float
    cpu_us: float


@dataclass
class Report:
    """A benchmark's result; each round ran all contestants one after the other.

    Parameters
    ----------
    decode_us:
        Strict decoding of one binary record of 784 values, median (µs CPU).
    steps_us:
        What each step of the layer takes for one record, without a broker (µs CPU).
    """

    broker: str
    records: int
    size: int
    decode_us: float
    steps_us: dict[str, float]
    rounds: list[dict[str, Rate]] = field(default_factory=list)

    def rate(self, name: str) -> Rate:
        """Median of a contestant's rounds."""
        runs = [rates[name] for rates in self.rounds]
        return Rate(median(r.per_second for r in runs), median(r.cpu_us for r in runs))

    def ratio(self, name: str) -> float:
        """How many times faster ours is: the median of the ratios within a round."""
        return median(rates[OURS].per_second / rates[name].per_second for rates in self.rounds)

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return {
            "broker": self.broker, "records": self.records, "bytes": self.size,
            "decode_us": self.decode_us, "steps_us": self.steps_us,
            "contestants": {
                name: asdict(self.rate(name))
                | {
                    "ours_over_it": self.ratio(name),
                    "rounds": [asdict(rates[name]) for rates in self.rounds],
                }
                for name in CONTESTANTS
            },
        }  # fmt: skip


def measure(servers: str, words: str, *, records: int, rounds: int) -> Iterator[Report]:
    """Let all contestants do the same records in turns.

    Parameters
    ----------
    servers, words:
        Address of the broker, and what it is.

    Yields
    ------
    Report
        The same one after each round.
    """
    tag = uuid.uuid4().hex[:8]
    source = f"bench-{tag}"
    asyncio.run(_fill(servers, source, records))
    report = Report(words, records, SIZE, decoding(), stages())
    for number in range(rounds):
        order = list(CONTESTANTS)
        order = order[number % len(order) :] + order[: number % len(order)]
        rates = {name: _run(servers, source, f"{tag}-{number}", name, records) for name in order}
        report.rounds.append(rates)
        yield report


def stages() -> dict[str, float]:
    """Measure the steps of the layer one by one, in a process of their own (µs CPU a record)."""
    return said([sys.executable, "-m", "workers.bench.contestants.stages"])


def decoding(records: int = DECODE_RECORDS) -> float:
    """Measure the strict decoding of binary records of 784 values (µs CPU), median of 5 runs."""
    x = np.random.default_rng(0).integers(0, 256, (1, 1, 28, 28), np.uint8)
    value, headers = encode_request(model="mnist", x=x, id="request-1", client="app-7")
    models = {"mnist": Expected("mnist", (1, 28, 28), "uint8", 0, 255)}
    limits = Limits()

    def decode() -> None:
        decode_request(
            b"key", value, headers, partition=0, offset=1, models=models, limits=limits,
            default_model="",
        )  # fmt: skip

    return median(_each(decode, records) for _ in range(5))


def _each(call: Callable[[], None], times: int) -> float:
    began = time.process_time()  # others may be running; it waits for nothing
    for _ in range(times):
        call()
    return (time.process_time() - began) / times * 1e6


async def _fill(servers: str, topic: str, records: int) -> None:
    """Write the inputs, by turns to all partitions."""
    await make_topics(servers, [topic], PARTITIONS)
    producer = AIOKafkaProducer(
        bootstrap_servers=servers, max_batch_size=256 * 1024, linger_ms=5, acks="all"
    )
    await producer.start()
    try:
        futures = [
            await producer.send(
                topic, work.encode(i, SIZE), key=b"%d" % i, partition=i % PARTITIONS
            )
            for i in range(records)
        ]
        await asyncio.gather(*futures)
    finally:
        await producer.stop()


def _run(servers: str, source: str, tag: str, name: str, records: int) -> Rate:
    """Run one contestant as a process of its own, with a group and a topic of its own."""
    module, *how = CONTESTANTS[name]
    target = f"{source}-{tag}-{'-'.join((module, *how))}"
    asyncio.run(make_topics(servers, [target], PARTITIONS))
    command = [
        sys.executable, "-m", f"workers.bench.contestants.{module}", *how, servers, source, target,
        f"group-{target}", str(records),
    ]  # fmt: skip
    found = said(command)
    return Rate(found["records"] / found["seconds"], 1e6 * found["cpu_seconds"] / found["records"])


def said(command: Sequence[str]) -> dict[str, float]:
    """What a contestant prints at its end.

    Raises
    ------
    NNSecError
        If it did not do its work in time, with the end of what it wrote.
    """
    root = Path(__file__).parents[2]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=True, cwd=root
        )
        found: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        wrote = str(getattr(error, "stderr", "") or "")[-2000:]
        raise NNSecError(f"{command[2]} did not end well: {error}\n{wrote}") from error
    return found
