"""``nnsec worker``: the processes as they are started, and how they end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
from typer.testing import CliRunner

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from tests.workers.field import Field
from tests.workers.stage import incident
from workers import store
from workers.cli import app


async def test_the_view_as_a_process(settings: Settings, valkey: str, tmp_path: Path) -> None:
    """It declares topics, says when it is ready, shows an incident, and ends with 0."""
    here = Field(settings, tmp_path, None, {})  # type: ignore[arg-type]
    one = incident()
    key = store.Keys(settings.redis.prefix).incident(str(one.id))
    try:
        process = here.start("worker", "view")
        await here.ready("view", process)
        async with (
            kafka.publisher(settings) as publish,
            redis.Redis.from_url(valkey, decode_responses=True) as client,
        ):
            await publish(Out("incidents", one.encode(), b"", partition=0))

            async def shown() -> bool:
                return bool(await client.hget(key, "state") == "open")  # type: ignore[misc]

            await here.until(shown)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        here.close()


LOGS = """
import logging
from workers.commands import worker

async def work():
    logging.info("%s of source %s: %s", "quarantine", "s\\x1b[2J", "why\\n2026 ERROR forged")
    try:
        raise ValueError("\\x1b[Hraised")
    except ValueError:
        logging.exception("it failed")
    return 0

worker._run(work())
"""


def test_the_log_of_a_worker_steers_no_terminal() -> None:
    """Names and reasons that others chose are text on one line, in a traceback too."""
    done = subprocess.run(
        [sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=60, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    first, second, *traceback = done.stderr.splitlines()
    assert first.endswith(
        " INFO root quarantine of source s\N{REPLACEMENT CHARACTER}[2J: "
        "why\N{REPLACEMENT CHARACTER}2026 ERROR forged"
    )
    assert second.endswith(" ERROR root it failed")
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "ValueError: \N{REPLACEMENT CHARACTER}[Hraised"


@pytest.mark.parametrize("dry", [False, True])
def test_a_dry_run_is_asked_for_by_hand(monkeypatch: pytest.MonkeyPatch, dry: bool) -> None:
    """The option outranks the configuration, and is off by default."""
    given: list[Settings] = []

    async def run(settings: Settings) -> int:
        given.append(settings)
        return 0

    monkeypatch.setattr("workers.remediation.run", run)
    done = CliRunner().invoke(app, ["worker", "remediation", *(["--dry-run"] if dry else [])])
    assert done.exit_code == 0, done.output
    assert given[0].remediation.dry_run is dry


async def test_a_worker_waits_for_a_broker_that_is_away(settings: Settings, tmp_path: Path) -> None:
    """With one line in the log, and ends when it is told to."""
    away: Any = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})}
    )
    here = Field(away, tmp_path, None, {})  # type: ignore[arg-type]
    try:
        process = here.start("worker", "remediation")

        async def waits() -> bool:
            return "Kafka does not answer" in here.log()

        await here.until(waits)
        await asyncio.sleep(1.0)
        assert here.log().count("Kafka does not answer") == 1
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 20) == 0, here.log()
    finally:
        here.close()
