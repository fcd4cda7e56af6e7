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
from statistics import median
from typing import Any

import numpy as np

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Created, create
from nnsec.settings import parse
from nnsec.trust import keys
from workers.bench.probe import Probe, probing
from workers.bench.traffic import Traffic
from workers.demo import stage
from workers.demo.material import Material
from workers.fleet import Fleet
from workers.releases import release

QUANTILES = (0.5, 0.95, 0.99, 0.999)
SHARES = (0.1, 0.5, 0.8)
"""Of saturation."""
FIRST_WAIT = 60.0
WARM_UP = 200
"""Inputs that are sent in a second before anything is measured."""
PATIENCE = 20.0
"""Seconds in which what was sent must be read."""
MEGABYTE = 1024 * 1024
THREADS = "OMP_NUM_THREADS"
"""Set to 1 unless it is set: the monitor, the broker and this process share the machine."""


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
        Slope of the resident size of the worker and its child in the second half of the time
        (MB a minute): what is filled once is full by then, if the time was long enough.
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
        From starting the stream process to the first score that could be read (s), median of the
        starts; there is one for each rate.
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
        bench = await asyncio.to_thread(Bench.prepared, Path(name), servers, material)
        async with bench.monitor() as (probe, _):
            report.saturation = await _saturate(probe, bench.traffic, seconds)
        yield report
        wanted = [(rate, 0.0) for rate in rates]
        wanted += [(share * report.saturation, share) for share in shares]
        for rate, share in wanted:
            async with bench.monitor() as (probe, pid):
                report.lines.append(await _at(probe, bench.traffic, rate, share, seconds, pid))
            report.first_score = median(bench.starts)
            yield report


async def last(
    servers: str, words: str, material: Material, *, told: Callable[[str], object], **more: Any
) -> Report:
    """What `measure` yields at last; ``told`` is called with what is done."""
    report = Report(words, material.name, 0.0)
    async for report in measure(servers, words, material, **more):
        told(f"saturation {report.saturation:,.0f}/s, {len(report.lines)} rates done")
    return report


# --- before ---


@dataclass
class Bench:
    """A trained checkpoint, and the monitor started anew with it for each rate.

    Each time on topics of its own: the embedded broker takes the longer to answer a fetch the more
    batches a partition holds.
    """

    folder: Path
    servers: str
    material: Material
    created: Created
    traffic: Traffic
    starts: list[float] = field(default_factory=list)
    """From each start to the first score (s)."""

    @classmethod
    def prepared(cls, folder: Path, servers: str, material: Material) -> Bench:
        """Make keys and a checkpoint; trains the network."""
        for role in ("release", "operator"):
            keys.write_new(folder / role)
        settings = parse(tables(folder, servers, material, 0))
        created = create(
            Registry(settings.registry.url), model=material.name,
            spec=settings.models[material.name], weights=material.trained().state_dict(),
            x=material.reference_x, y=material.reference_y,
            key=keys.load_private(settings.remediation.release_key), now=datetime.now(UTC),
            seed=material.seed,
        )  # fmt: skip
        traffic = Traffic.drawn(material, material.seed)
        return cls(folder, servers, material, created, traffic)

    @asynccontextmanager
    async def monitor(self) -> AsyncIterator[tuple[Probe, int]]:
        """Start it, wait for the first score, and let it warm up; the worker's pid beside."""
        made = tables(self.folder, self.servers, self.material, len(self.starts) + 1)
        config = self.folder / "nnsec.toml"
        config.write_text(stage.to_toml(made), "utf-8")
        settings = parse(made)
        await release(
            settings, model=self.material.name, version=self.created.version,
            digest=self.created.digest, reason="benchmark",
            key=keys.load_private(settings.remediation.release_key),
        )  # fmt: skip
        os.environ.setdefault(THREADS, "1")
        with Fleet(settings, config) as fleet:
            async with probing(settings) as probe:
                self.starts.append(await _first(probe, fleet, self.traffic))
                await fleet.ready(["stream"])
                for one in self.traffic.honest(WARM_UP):
                    await probe.send(one)
                    await asyncio.sleep(1 / WARM_UP)
                await probe.until(WARM_UP + 1, PATIENCE)
                yield probe, fleet.children["stream"].process.pid


def tables(folder: Path, servers: str, material: Material, number: int) -> dict[str, Any]:
    """The configuration of one start, with topics of its own."""
    prefix = f"{folder.name}-{number}."
    base = parse({"kafka": {"bootstrap_servers": servers, "prefix": prefix}})
    made = stage.configuration(folder, base, material.name, material.spec, material.seed)
    made["kafka"] |= {"start_at": "earliest"}
    return made


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
    late = sizes[len(sizes) // 2 :]
    return Line(
        rate, len(inputs) / took, share, len(inputs) - len(probe.scored),
        Quantiles.of(probe.latencies()), Quantiles.of(probe.alerted), slope(late),
    )  # fmt: skip


def resident(pid: int) -> float:
    """Resident size of a process and its children (MB)."""
    children = [*Path(f"/proc/{pid}/task").glob("*/children")]
    pids = [pid, *(int(text) for path in children for text in path.read_text("ascii").split())]
    pages = [int(Path(f"/proc/{one}/statm").read_text("ascii").split()[1]) for one in pids]
    return sum(pages) * 4096 / MEGABYTE


def slope(sizes: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of (s, MB) in MB a minute; NaN of fewer than three points.

    >>> round(slope([(0.0, 10.0), (1.0, 10.1), (2.0, 10.2)]), 6)
    6.0
    """
    if len(sizes) < 3:
        return float("nan")
    times, memory = np.array(sizes).T
    return float(np.polyfit(times - times[0], memory, 1)[0] * 60)
