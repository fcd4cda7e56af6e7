"""What every worker does around its work: declare, answer probes, stop in time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from nnsec.adapters import kafka
from nnsec.adapters.probes import RUN_FOLDER
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.base import to_millis
from workers import process
from workers.embedded import Broker
from workers.process import Process


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # There is one for the process; what one test leaves of it says nothing to the next.
    monkeypatch.setattr(kafka.outage, "since", None)


async def probe(path: str) -> tuple[int, str]:
    """Ask this process, by the address that it wrote down."""

    def ask() -> tuple[int, str]:
        (file,) = RUN_FOLDER.glob(f"view-{os.getpid()}.json")
        url = f"http://{json.loads(file.read_text())['address']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def test_topics_are_there_before_the_work_and_probes_tell(settings: Settings) -> None:
    """Not ready while it starts, ready after; SIGTERM ends it with 0 and takes the file along."""
    seen: list[tuple[int, str]] = []

    async def work(running: Process) -> None:
        assert set(running.logs) >= {"incidents", "alerts"}
        seen.append(await probe("/readyz"))
        running.problem("start")
        seen.extend([await probe("/readyz"), await probe("/livez")])
        os.kill(os.getpid(), signal.SIGTERM)
        await running.stop.wait()

    assert await process.run(settings, "view", work) == 0
    assert seen == [(503, "starting\n"), (200, "ready\n"), (200, "ok\n")]
    assert list(RUN_FOLDER.iterdir()) == []


async def test_work_that_does_not_end_is_cut_off(settings: Settings) -> None:
    """After ``drain_seconds``, with status 1."""
    drained = settings.kafka.model_copy(update={"drain_seconds": 0.2})
    cancelled = asyncio.Event()

    async def work(running: Process) -> None:
        running.stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    assert await process.run(settings.model_copy(update={"kafka": drained}), "view", work) == 1
    assert cancelled.is_set()


async def test_a_wrong_configuration_comes_out(settings: Settings) -> None:
    """A broker that nobody starts is an error that says so, not something to wait for."""
    wrong = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": "embedded"})}
    )

    async def work(_: Process) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match="nnsec up"):
        await process.run(wrong, "view", work)


async def test_an_absent_broker_does_not_keep_it_from_ending(settings: Settings) -> None:
    """It waits, says why, and stops when told."""
    away = settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})

    async def work(_: Process) -> None:
        raise AssertionError

    async def stop() -> None:
        await asyncio.sleep(0.5)
        assert "the broker has not answered" in (await probe("/readyz"))[1]
        os.kill(os.getpid(), signal.SIGINT)

    asking = asyncio.create_task(stop())
    assert await process.run(settings.model_copy(update={"kafka": away}), "view", work) == 0
    await asking


async def test_a_broker_that_falls_silent_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not ready while no answer comes, and says so once; its own reading tells it nothing."""
    monkeypatch.setattr(process, "ASK_EVERY", 0.1)
    monkeypatch.setattr(process, "PATIENCE", 0.5)

    async def until(status: int, text: str) -> None:
        async with asyncio.timeout(10):
            while await probe("/readyz") != (status, text):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)

    async def work(running: Process) -> None:
        running.problem("start")
        await until(200, "ready\n")
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            await until(503, "Kafka does not answer\n")
            await asyncio.sleep(1.0)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        await until(200, "ready\n")
        running.stop.set()

    with Broker(Path("broker")) as broker:
        update = {"bootstrap_servers": broker.url}
        kafka_ = settings.kafka.model_copy(update=update)
        own = settings.model_copy(update={"kafka": kafka_})
        assert await process.run(own, "view", work) == 0
    said = [one.getMessage() for one in caplog.records]
    assert len([line for line in said if line.startswith("Kafka does not answer")]) == 1
    assert len([line for line in said if line.startswith("Kafka is back")]) == 1


async def test_a_dead_connection_is_replaced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else closes one over which nothing comes, and the process works all the same."""
    monkeypatch.setattr(process, "ASK_EVERY", 0.05)
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    ask, dead = AIOKafkaConsumer.end_offsets, []

    async def hangs(consumer: Any, places: Any) -> Any:
        if not consumer.subscription():  # it is the one that asks
            dead.append(consumer)
            if consumer is dead[0]:
                await asyncio.Event().wait()
        return await ask(consumer, places)

    monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", hangs)

    async def work(running: Process) -> None:
        running.problem("start")
        async with asyncio.timeout(10):
            while kafka.outage.since is None:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
            while running.ready() or len(dead) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.stop.set()

    assert await process.run(settings, "view", work) == 0
    assert dead.count(dead[0]) == 1


def test_problems_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins and one when it is over, however often it is noted."""
    caplog.set_level("INFO")
    running = Process("view")
    for _ in range(3):
        running.problem("Redis", "away")
    assert running.ready() == ("away",)
    for _ in range(3):
        running.problem("Redis")
    assert running.ready() == ()
    assert [r.getMessage() for r in caplog.records] == [
        "view: away; waiting", "view: Redis is there",
    ]  # fmt: skip


async def test_since_yields_what_came_after(settings: Settings) -> None:
    """Whatever the broker knows of times."""
    t0 = datetime.now(UTC)
    await kafka.declare(settings, now=t0)
    ms = to_millis(t0)
    old = Out("scores", b"old", b"k", timestamp=to_millis(t0 - timedelta(days=2)))
    async with kafka.publisher(settings) as publish:
        await publish(old)
        await publish(Out("scores", b"new", b"k", timestamp=ms))
    found = [r.value async for r in process.since(settings, "scores", ms - 1000)]
    assert found == [b"new"]


def test_workers_start_without_what_takes_seconds_to_import() -> None:
    """View, remediation and the command line itself; what needs a network imports it then."""
    slow = ("torch", "sklearn", "scipy", "faust", "model_signing", "river")
    code = (
        "import sys, workers.cli, workers.view, workers.remediation; "
        f"print([name for name in {slow} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
