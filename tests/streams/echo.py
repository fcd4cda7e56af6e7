"""An agent that publishes what it reads, and what tests of delivery on a broker share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings
from streams.runtime import Runtime

TOPIC = "labels"
PARTITIONS = 4
WAIT = 30.0


@dataclass
class Echo:
    """Publishes each record again, unless told to do otherwise."""

    role: str = "echo"
    topics: tuple[str, ...] = (TOPIC,)
    before: Callable[[Sequence[Record]], None] = lambda records: None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[list[bytes]] = field(default_factory=list)
    held: list[frozenset[tuple[str, int]]] = field(default_factory=list)
    begin: Mapping[tuple[str, int], int] | None = None
    ticks: list[Out] = field(default_factory=list)
    refusals: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    async def assigned(
        self, partitions: frozenset[tuple[str, int]]
    ) -> Mapping[tuple[str, int], int] | None:
        if self.refusals:
            raise self.refusals.pop()
        self.held.append(partitions)
        return self.begin

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        self.batches.append([record.value or b"" for record in records])
        await self.gate.wait()
        self.before(records)
        return [Out("scores", record.value, record.key) for record in records]

    async def tick(self, now: float) -> Sequence[Out]:
        if self.refusals:
            raise self.refusals.pop()
        outs, self.ticks = self.ticks, []
        return outs


@asynccontextmanager
async def member(settings: Settings, agent: Echo) -> AsyncIterator[Runtime]:
    """One process of the streams, ready, and drained at the end."""
    stop, runtime = asyncio.Event(), Runtime(settings, (), [agent])
    task = asyncio.create_task(runtime.run(stop))
    try:
        await until(lambda: agent.held and not runtime.problems())
        yield runtime
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test
            await asyncio.sleep(0.02)


async def send(settings: Settings, values: Sequence[bytes]) -> list[bytes]:
    outs = [Out(TOPIC, v, v, partition=i % PARTITIONS) for i, v in enumerate(values)]
    async with kafka.publisher(settings) as publish:
        await publish(*outs)
    return list(values)


async def echoed(settings: Settings, count: int) -> list[bytes]:
    """What came out, once there are so many different values."""
    async with asyncio.timeout(WAIT):
        while True:
            found = [r.value or b"" async for r in kafka.read_to_end(settings, ("scores",))]
            if len(set(found)) >= count:
                return found
            await asyncio.sleep(0.05)


async def lag(settings: Settings, role: str = "echo") -> int:
    async with kafka.Positions(settings, role, (TOPIC,)) as positions:
        return sum(bounds.lag for bounds in (await positions.read()).values())


def numbers(count: int, prefix: str = "v") -> list[bytes]:
    return [f"{prefix}{i}".encode() for i in range(count)]
