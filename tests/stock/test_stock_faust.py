"""What stock Faust loses, and the sluice does not: each in two worker processes side by side.

If a stock worker ever loses nothing, Faust has changed, and what was built around it may go.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from workers.embedded import Broker

SIDES = ("stock", "sluice")
TOPICS = {"stock": "scores", "sluice": "alerts"}
"""Where each side copies `SOURCE` to."""
SOURCE = "labels"
WAIT = 40.0
SENT = [b"%d" % i for i in range(40)]


@dataclass
class Worker:
    """One side: its folder, and the process that runs now."""

    settings: Settings
    side: str
    fact: str
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def group(self) -> str:
        return f"{self.side}-{self.fact}"

    def start(self) -> None:
        names = [kafka.topic_name(self.settings, n) for n in (SOURCE, TOPICS[self.side])]
        group = kafka.topic_name(self.settings, self.group)
        servers = self.settings.kafka.bootstrap_servers
        root = Path(__file__).parents[2]
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("worker.py")), self.side,
                     self.fact, servers, *names, group, str(self.folder)],
                    cwd=self.folder, stdout=log, stderr=log,
                    env=os.environ | {"PYTHONPATH": str(root)},
                )
            )  # fmt: skip

    async def end(self, number: signal.Signals, seconds: float = WAIT) -> bool:
        """Send a signal; whether it ended in time. If not, it is killed."""
        process = self.processes[-1]
        process.send_signal(number)
        try:
            await asyncio.to_thread(process.wait, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True

    def said(self, name: str) -> bool:
        assert self.processes[-1].poll() is None, self.log()
        return (self.folder / name).exists()

    def log(self) -> str:
        return "\n".join(f.read_text(errors="replace") for f in self.folder.glob("log-*"))[-3000:]

    async def committed(self) -> int:
        async with kafka.Positions(self.settings, self.group, (SOURCE,)) as positions:
            return (await positions.read())[SOURCE, 0].committed or 0

    async def copied(self) -> set[bytes]:
        topic = TOPICS[self.side]
        return {record.value or b"" async for record in kafka.read_to_end(self.settings, (topic,))}

    async def all_committed(self, count: int = len(SENT)) -> None:
        """Wait until the group has committed so many records."""
        async with asyncio.timeout(WAIT):
            while await self.committed() < count:
                assert self.processes[-1].poll() is None, self.log()
                await asyncio.sleep(0.1)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.05)


@asynccontextmanager
async def both(settings: Settings, fact: str, folder: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    """A worker of each side, started, with the records to copy in their topic."""
    await kafka.declare(settings, now=datetime.now(UTC))
    await send(settings, SENT)
    workers = [Worker(settings, side, fact, folder / side) for side in SIDES]
    try:
        for worker in workers:
            worker.folder.mkdir()
            worker.start()
        yield workers[0], workers[1]
    finally:
        for worker in workers:
            for process in worker.processes:
                process.kill()
                process.wait()


async def send(settings: Settings, values: Sequence[bytes]) -> None:
    async with kafka.publisher(settings) as publish:
        await publish(*(Out(SOURCE, value, partition=0) for value in values))


@pytest.mark.parametrize("fact", ["take", "iterated"])
async def test_what_raises_once_is_lost(settings: Settings, fact: str, tmp_path: Path) -> None:
    """Stock Faust commits what raised, as batch or as record; the sluice tries it again."""
    async with both(settings, fact, tmp_path) as (stock, sluice):
        await asyncio.gather(stock.all_committed(), sluice.all_committed())
        lost = set(SENT) - await stock.copied()
        assert b"12" in lost
        assert fact != "take" or lost >= set(SENT[10:20])
        assert await sluice.copied() == set(SENT)


async def test_a_generator_that_is_kept_hangs(settings: Settings, tmp_path: Path) -> None:
    """The stock agent gets nothing more and does not end; the sluice has no generator to keep."""
    more = [b"more-%d" % i for i in range(10)]
    async with both(settings, "kept", tmp_path) as (stock, sluice):
        await until(lambda: stock.said("stumbled") and sluice.said("stumbled"))
        await sluice.all_committed()
        await send(settings, more)
        await sluice.all_committed(50)
        assert await sluice.copied() == {*SENT, *more}
        assert await sluice.end(signal.SIGTERM)
        assert sluice.processes[-1].returncode == 0, sluice.log()
        assert not set(more) & await stock.copied()
        assert not await stock.end(signal.SIGTERM, 4.0)


async def test_what_is_not_acknowledged_is_committed(settings: Settings, tmp_path: Path) -> None:
    """Stock Faust commits past a record that waits; the sluice commits nothing behind it."""
    async with both(settings, "withheld", tmp_path) as (stock, sluice):
        await stock.all_committed()
        await until(lambda: sluice.said("began"))
        assert await sluice.committed() == 0
        for worker in (stock, sluice):
            await worker.end(signal.SIGKILL)
            worker.start()
        await sluice.all_committed()
        assert await sluice.copied() == set(SENT)
        assert await stock.copied() == set(SENT) - {b"0"}


async def test_a_stop_in_a_hurry_commits_what_was_begun(settings: Settings, tmp_path: Path) -> None:
    """Without ``stream_wait_empty`` stock Faust commits the batch that it cancels."""
    async with both(settings, "hurried", tmp_path) as (stock, sluice):
        await until(lambda: stock.said("began") and sluice.said("began"))
        for worker in (stock, sluice):
            await worker.end(signal.SIGTERM)
            worker.start()
        await asyncio.gather(stock.all_committed(), sluice.all_committed())
        assert await sluice.copied() == set(SENT)
        assert await stock.copied() < set(SENT)


async def test_a_send_that_fails_is_not_heard(settings: Settings, tmp_path: Path) -> None:
    """Stock Faust only logs it and commits; the sluice sends again until it is acknowledged."""
    with Broker(tmp_path / "broker") as broker:
        changed = settings.kafka.model_copy(update={"bootstrap_servers": broker.url})
        own = settings.model_copy(update={"kafka": changed})
        async with both(own, "unheard", tmp_path) as (stock, sluice):
            await until(lambda: stock.said("began") and sluice.said("began"))
            os.kill(broker.pid, signal.SIGSTOP)
            for worker in (stock, sluice):
                (worker.folder / "frozen").touch()
            await asyncio.sleep(2.5)
            os.kill(broker.pid, signal.SIGCONT)
            await asyncio.gather(stock.all_committed(), sluice.all_committed())
            assert await sluice.copied() == set(SENT)
            assert await stock.copied() < set(SENT)
