"""The scoring role beside a bare loop that only runs the model, on a real broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from numpy.typing import NDArray

from nnsec.adapters import kafka
from nnsec.adapters.declaration import declare
from nnsec.checkpoints import Created
from nnsec.errors import NNSecError
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from schemas.inference import encode_request
from workers.bench.broker import make_topics
from workers.bench.contestants.work import Clock
from workers.bench.delivery import said
from workers.bench.latency import Bench, tables
from workers.bench.suite import IN_DOUBT, mixed
from workers.demo import stage
from workers.demo.material import Material
from workers.embedded import with_parent
from workers.releases import release

EACH = 64
"""Inputs in a record of many."""
POOL = 2000
"""Honest inputs that are sent in turns."""
_LIMIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Contest:
    """One contestant on one kind of input.

    Parameters
    ----------
    words:
        What it is.
    program:
        ``suite`` is the scoring role itself; the others are modules of `contestants`.
    each:
        Inputs in a record.
    doubtful:
        Whether 30 % of the inputs are in doubt, and not what honest ones bring.
    times:
        So many times more inputs than the others, for what would be over at once.
    """

    words: str
    program: tuple[str, ...]
    each: int = 1
    doubtful: bool = False
    times: int = 1


BARE = Contest("bare loop, model only", ("loop",))
CONTESTS = (
    BARE,
    Contest("whole suite", ("suite",)),
    Contest(f"whole suite, {IN_DOUBT:.0%} in doubt", ("suite",), doubtful=True),
    Contest(f"layer and model, {EACH} a record", ("forward",), EACH),
    Contest(f"whole suite, {EACH} a record", ("suite",), EACH),
    Contest(f"bare loop, no model, {EACH} a record", ("loop", "idle"), EACH, times=20),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """What one contestant did in one round."""

    rows_per_second: float
    megabytes_per_second: float


@dataclass
class Report:
    """A benchmark's result; each round ran all contests one after the other.

    Parameters
    ----------
    inputs:
        A round and contest.
    in_doubt:
        Share of the honest inputs that went through all detectors.
    """

    broker: str
    dataset: str
    inputs: int
    in_doubt: float
    rounds: list[dict[str, Rate]] = field(default_factory=list)

    def rate(self, contest: Contest) -> Rate:
        """Median of its rounds."""
        runs = [rates[contest.words] for rates in self.rounds]
        return Rate(
            median(r.rows_per_second for r in runs), median(r.megabytes_per_second for r in runs)
        )

    def ratio(self, contest: Contest) -> float:
        """Of its rate to that of the bare loop: the median of the ratios within a round."""
        return median(
            rates[contest.words].rows_per_second / rates[BARE.words].rows_per_second
            for rates in self.rounds
        )

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return {
            "broker": self.broker, "dataset": self.dataset, "inputs": self.inputs,
            "in_doubt": self.in_doubt,
            "contests": {
                one.words: asdict(self.rate(one))
                | {
                    "over_bare": self.ratio(one),
                    "rounds": [asdict(rates[one.words]) for rates in self.rounds],
                }
                for one in CONTESTS
                if one.words in self.rounds[0]
            },
        }  # fmt: skip


def measure(
    servers: str,
    words: str,
    material: Material,
    *,
    inputs: int,
    rounds: int,
    contests: Sequence[Contest] = CONTESTS,
) -> Iterator[Report]:
    """Train a network, and let all contests do the same number of inputs in turns.

    Parameters
    ----------
    servers, words:
        Address of the broker, and what it is.
    contests:
        Which of them.

    Yields
    ------
    Report
        The same one after each round.
    """
    with tempfile.TemporaryDirectory(prefix="nnsec-bench-") as name:
        bench = Bench.prepared(Path(name), servers, material)
        suite = bench.created.checkpoint.suite
        pool = material.honest(POOL, seed=1).x
        through = suite.through(pool)
        kinds = {False: pool, True: mixed(pool, through, IN_DOUBT, POOL)}
        report = Report(words, material.name, inputs, float(through.mean()))
        for number in range(rounds):
            first = number % len(contests)
            order = [*contests[first:], *contests[:first]]
            report.rounds.append(
                {
                    one.words: _run(bench, one, kinds[one.doubtful], inputs, 10 * number + place)
                    for place, one in enumerate(order)
                }
            )
            yield report


def _run(bench: Bench, contest: Contest, pool: NDArray[Any], inputs: int, number: int) -> Rate:
    """One contest, on topics of its own."""
    inputs *= contest.times
    config = bench.folder / f"scoring-{number}.toml"
    made = tables(bench.folder, bench.servers, bench.material, number)
    config.write_text(stage.to_toml(made), "utf-8")
    settings = parse(made)
    asyncio.run(_fill(settings, bench.material, bench.created, pool, inputs, contest.each))
    if contest.program == ("suite",):
        return Rate(**_suite(settings, config, inputs, contest.each))
    module, *more = contest.program
    command = [
        sys.executable, "-m", f"workers.bench.contestants.{module}", str(config),
        bench.material.name, bench.servers, kafka.topic_name(settings, "inference.inputs"),
        str(inputs), str(contest.each), *more,
    ]  # fmt: skip
    return Rate(**said(command))


async def _fill(
    settings: Settings, material: Material, created: Created, pool: NDArray[Any], inputs: int,
    each: int,
) -> None:  # fmt: skip
    """Release the checkpoint, and write the inputs by turns to all partitions."""
    await declare(settings, now=datetime.now(UTC))
    await release(
        settings, model=material.name, version=created.version, digest=created.digest,
        reason="benchmark", key=keys.load_private(settings.remediation.release_key),
    )  # fmt: skip
    topic = kafka.topic_name(settings, "inference.inputs")
    partitions = settings.kafka.partitions.inputs
    await make_topics(settings.kafka.bootstrap_servers, [f"{topic}-predictions"], partitions)
    producer = AIOKafkaProducer(
        **kafka.client_options(settings.kafka), max_batch_size=512 * 1024, linger_ms=5, acks="all"
    )
    await producer.start()
    try:
        futures = []
        for number in range(inputs // each):
            rows = pool[np.arange(number * each, (number + 1) * each) % len(pool)]
            value, headers = encode_request(
                model=material.name, x=rows, id=f"input-{number}", client=f"app-{number % 50}"
            )
            futures.append(
                await producer.send(
                    topic, value, partition=number % partitions, headers=list(headers)
                )
            )
        await asyncio.gather(*futures)
    finally:
        await producer.stop()


def _suite(settings: Settings, config: Path, inputs: int, each: int) -> dict[str, float]:
    """Run the scoring role, and watch how far its scores have come."""
    command = [sys.executable, "-m", "workers.cli", "--config", str(config), "stream"]
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            with_parent([*command, "--role", "score"], "TERM"), stdout=output, stderr=output,
            cwd=config.parent,
        )  # fmt: skip
    try:
        return asyncio.run(_watched(settings, inputs, each))
    except (TimeoutError, ValueError) as error:
        raise NNSecError(f"not measured: {error}\n{log.read_text('utf-8')[-2000:]}") from error
    finally:
        process.terminate()
        process.wait()


async def _watched(settings: Settings, inputs: int, each: int) -> dict[str, float]:
    """Count the scores as they come; the embedded broker's end offsets count batches."""
    size = await _bytes(settings)
    topic = kafka.topic_name(settings, "scores")
    consumer = AIOKafkaConsumer(
        topic, **kafka.client_options(settings.kafka), auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )  # fmt: skip
    await consumer.start()
    clock, deadline = Clock(inputs), time.monotonic() + _LIMIT_SECONDS
    try:
        while not clock.ended:
            if time.monotonic() > deadline:
                raise TimeoutError
            found = sum(map(len, (await consumer.getmany(timeout_ms=200)).values()))
            clock.note(found * each, found * size)
    finally:
        await consumer.stop()
    return clock.rates()


async def _bytes(settings: Settings) -> int:
    """Bytes of one input record's value; all are about alike."""
    consumer = AIOKafkaConsumer(
        kafka.topic_name(settings, "inference.inputs"), **kafka.client_options(settings.kafka),
        auto_offset_reset="earliest",
    )  # fmt: skip
    await consumer.start()
    try:
        return len((await consumer.getone()).value)
    finally:
        await consumer.stop()
