"""How long the whole monitor takes: from an input to its score, and to its client's alert."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from nnsec.adapters import kafka
from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Created, create
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from schemas.alert import Alert
from workers.bench.traffic import Sent, Traffic
from workers.demo import stage
from workers.demo.material import Material
from workers.fleet import Fleet
from workers.releases import release

QUANTILES = (0.5, 0.95, 0.99, 0.999)
SHARES = (0.1, 0.5, 0.8)
"""Of saturation."""
FIRST_WAIT = 60.0
PATIENCE = 20.0
"""Seconds in which what was sent must be read."""
MEGABYTE = 1024 * 1024
THREADS = "OMP_NUM_THREADS"
"""Set to 1 unless it is set: the monitor, the broker and this process share the machine."""
_NAMES = ("inference.inputs", "scores", "alerts")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of some latencies (ms), by `QUANTILES`; NaN if there were none."""

    n: int
    values: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Quantiles:
        """Summarize latencies in seconds."""
        if not len(seconds):
            return cls(0, (float("nan"),) * len(QUANTILES))
        found = np.quantile(np.asarray(seconds) * 1000, QUANTILES)
        return cls(len(seconds), tuple(found.tolist()))


@dataclass(frozen=True, slots=True)
class Line:
    """One rate.

    Parameters
    ----------
    rate:
        Inputs a second that were asked for, and those that were sent.
    share:
        Of saturation; 0 where the rate was named.
    lost:
        Inputs without a score after `PATIENCE`.
    memory:
        Slope of the worker's resident size (MB a minute).
    """

    rate: float
    sent: float
    share: float
    lost: int
    scores: Quantiles
    alerts: Quantiles
    memory: float


@dataclass
class Report:
    """A benchmark's result.

    Parameters
    ----------
    first_score:
        From starting the stream process to the first score that could be read (s).
    saturation:
        Inputs scored a second when a backlog is there.
    """

    broker: str
    dataset: str
    seconds: float
    first_score: float = 0.0
    saturation: float = 0.0
    lines: list[Line] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"quantiles": list(QUANTILES)}


async def measure(
    servers: str,
    words: str,
    material: Material,
    *,
    rates: Sequence[float],
    seconds: float,
    shares: Sequence[float] = SHARES,
) -> AsyncIterator[Report]:
    """Start the monitor, find its saturation, and send at each rate for some seconds.

    Parameters
    ----------
    servers, words:
        Address of the broker, and what it is.
    rates:
        Inputs a second.
    shares:
        Of saturation; these follow.

    Yields
    ------
    Report
        The same one, after each step.
    """
    report = Report(words, material.name, seconds)
    with tempfile.TemporaryDirectory(prefix="nnsec-bench-") as name:
        folder = Path(name)
        settings, created = await asyncio.to_thread(_prepare, folder, servers, material)
        await release(
            settings, model=material.name, version=created.version, digest=created.digest,
            key=keys.load_private(settings.remediation.release_key), reason="benchmark",
            now=datetime.now(UTC),
        )  # fmt: skip
        traffic = Traffic.drawn(material, material.seed)
        os.environ.setdefault(THREADS, "1")
        with Fleet(settings, folder / "nnsec.toml") as fleet:
            async with _probe(settings) as probe:
                report.first_score = await _first(probe, fleet, traffic)
                await fleet.ready(["stream"])
                yield report
                report.saturation = await _saturate(probe, traffic, seconds)
                yield report
                wanted = [(rate, 0.0) for rate in rates]
                wanted += [(share * report.saturation, share) for share in shares]
                pid = fleet.children["stream"].process.pid
                for rate, share in wanted:
                    report.lines.append(await _at(probe, traffic, rate, share, seconds, pid))
                    yield report


async def last(
    servers: str,
    words: str,
    material: Material,
    *,
    told: Callable[[str], object] = str,
    **more: Any,
) -> Report:
    """What `measure` yields at last.

    Parameters
    ----------
    told:
        Called with what is done.
    """
    report = Report(words, material.name, 0.0)
    async for report in measure(servers, words, material, **more):
        told(f"saturation {report.saturation:,.0f}/s, {len(report.lines)} rates done")
    return report


# --- before ---


def _prepare(folder: Path, servers: str, material: Material) -> tuple[Settings, Created]:
    """Keys, configuration and a checkpoint; trains the network."""
    for role in ("release", "operator"):
        keys.write_new(folder / role)
    prefix = f"latency-{folder.name[-8:]}."
    base = parse({"kafka": {"bootstrap_servers": servers, "prefix": prefix}})
    tables = stage.configuration(folder, base, material.name, material.spec, material.seed)
    tables["kafka"] |= {"start_at": "earliest"}
    (folder / "nnsec.toml").write_text(stage.to_toml(tables), "utf-8")
    settings = parse(tables)
    created = create(
        Registry(settings.registry.url), model=material.name, spec=settings.models[material.name],
        weights=material.trained().state_dict(), x=material.reference_x, y=material.reference_y,
        key=keys.load_private(settings.remediation.release_key), now=datetime.now(UTC),
        seed=material.seed,
    )  # fmt: skip
    return settings, created


# --- what sends and reads ---


class Probe:
    """Sends inputs and notes when their scores, and the alerts about them, can be read."""

    def __init__(
        self, settings: Settings, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer
    ) -> None:
        self._topic = kafka.topic_name(settings, _NAMES[0])
        self._producer = producer
        self._consumer = consumer
        self._places: dict[tuple[int, int], float] = {}
        self.sent: dict[bytes, float] = {}
        self.scored: dict[bytes, float] = {}
        self.alerted: list[float] = []
        self._accused: set[str] = set()

    def clear(self) -> None:
        """Forget everything."""
        for book in (self.sent, self.scored, self._places, self.alerted, self._accused):
            book.clear()

    async def send(self, one: Sent) -> None:
        """Send one input."""
        now = time.perf_counter()
        future = await self._producer.send(
            self._topic, one.value, key=one.client.encode(), headers=list(one.headers)
        )
        self.sent[one.id] = now

        def note(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and answer.exception() is None:
                found = answer.result()
                self._places[found.partition, found.offset] = now

        future.add_done_callback(note)

    async def read(self) -> None:
        """Note what can be read, until cancelled."""
        while True:
            found = await self._consumer.getmany(timeout_ms=1000)
            now = time.perf_counter()
            for tp, messages in found.items():
                if tp.topic.endswith("scores"):
                    for message in messages:
                        self.scored.setdefault(message.key, now)
                else:
                    for message in messages:
                        self._alert(Alert.decode(message.value), now)

    def _alert(self, alert: Alert, now: float) -> None:
        """Only the first about each client, from the row that crossed the bound."""
        if alert.subject.kind != "client" or alert.subject.id in self._accused:
            return
        self._accused.add(alert.subject.id)
        known = [self._places.get((place[1], place[2])) for place in alert.positions]
        times = [at for at in known if at is not None]
        if times:
            self.alerted.append(now - max(times))

    async def until(self, count: int, seconds: float) -> bool:
        """Wait until so many scores were read, or for a time (s); tell which."""
        deadline = time.perf_counter() + seconds
        while len(self.scored) < count and time.perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return len(self.scored) >= count

    def latencies(self) -> list[float]:
        """From sending to reading the score, of each input that has one (s)."""
        return [self.scored[name] - at for name, at in self.sent.items() if name in self.scored]


@asynccontextmanager
async def _probe(settings: Settings) -> AsyncIterator[Probe]:
    topics = [kafka.topic_name(settings, name) for name in _NAMES[1:]]
    options = kafka.client_options(settings.kafka)
    consumer = AIOKafkaConsumer(
        *topics, **options, auto_offset_reset="latest", fetch_max_wait_ms=10, group_id=None
    )
    producer = AIOKafkaProducer(**options, acks="all", linger_ms=0)
    await producer.start()
    await consumer.start()
    probe = Probe(settings, producer, consumer)
    reading = asyncio.create_task(probe.read())
    try:
        yield probe
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await consumer.stop()
        await producer.stop()


# --- the steps ---


async def _first(probe: Probe, fleet: Fleet, traffic: Traffic) -> float:
    """Seconds from starting the process to its first score; the input waits for it."""
    (one,) = traffic.honest(1)
    await probe.send(one)
    began = time.perf_counter()
    fleet.start("stream")
    if not await probe.until(1, FIRST_WAIT):
        fleet.check()
        raise TimeoutError(f"no score within {FIRST_WAIT:g} s of the start")
    return probe.scored[one.id] - began


async def _saturate(probe: Probe, traffic: Traffic, seconds: float) -> float:
    """Scores a second with a backlog, between the first tenth of them and the last."""
    count = 500
    while True:
        probe.clear()
        inputs = traffic.honest(count)
        began = time.perf_counter()
        for one in inputs:
            await probe.send(one)
        await probe.until(count, FIRST_WAIT)
        times = np.sort([*probe.scored.values()])
        if times[-1] - began >= seconds or len(times) < count:
            skipped = len(times) // 10
            return float((len(times) - 1 - skipped) / (times[-1] - times[skipped]))
        count *= 2


async def _at(
    probe: Probe, traffic: Traffic, rate: float, share: float, seconds: float, pid: int
) -> Line:
    """Send at a rate; an attacker after the other among honest clients."""
    probe.clear()
    inputs = traffic.mixed(round(rate * seconds))
    sizes: list[tuple[float, float]] = []
    began = time.perf_counter()
    for number, one in enumerate(inputs):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        elif number % 100 == 0:
            await asyncio.sleep(0)
        await probe.send(one)
        if not sizes or time.perf_counter() - sizes[-1][0] >= 0.5:
            sizes.append((time.perf_counter(), resident(pid)))
    took = time.perf_counter() - began
    await probe.until(len(inputs), PATIENCE)
    await asyncio.sleep(1.0)  # the last alerts
    return Line(
        rate, len(inputs) / took, share, len(inputs) - len(probe.scored),
        Quantiles.of(probe.latencies()), Quantiles.of(probe.alerted), slope(sizes),
    )  # fmt: skip


def resident(pid: int) -> float:
    """Resident size of a process (MB)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * 4096 / MEGABYTE


def slope(sizes: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of (s, MB) in MB a minute; NaN of fewer than three points.

    >>> round(slope([(0.0, 10.0), (1.0, 10.1), (2.0, 10.2)]), 6)
    6.0
    """
    if len(sizes) < 3:
        return float("nan")
    times, memory = np.array(sizes).T
    return float(np.polyfit(times - times[0], memory, 1)[0] * 60)
