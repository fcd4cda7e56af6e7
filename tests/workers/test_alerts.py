"""`nnsec alerts` shows what is wrong, to people and to programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nnsec.adapters.declaration import declare
from nnsec.adapters.publisher import publisher
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.alert import Alert
from tests.workers.conftest import Nnsec, variables
from workers.commands import alerts

FIXTURE = Path(__file__).parents[1] / "schemas" / "fixtures" / "alert.json"
ROOT = Path(__file__).parents[2]


def alert(**changes: Any) -> Alert:
    return Alert.model_validate_json(json.dumps(json.loads(FIXTURE.read_text()) | changes))


def publish(settings: Settings, *values: bytes) -> None:
    async def sent() -> None:
        await declare(settings, now=datetime.now(UTC))
        async with publisher(settings) as send:
            await send(*(Out("alerts", value, b"m") for value in values))

    asyncio.run(sent())


def test_programs_get_one_object_a_line(nnsec: Nnsec, settings: Settings) -> None:
    """What is not wanted is left out, what is no alert is passed over with a word."""
    wanted = alert(model="a", severity="critical", seq=7)
    publish(
        settings, b"{}", alert(model="b", severity="critical").encode(),
        alert(model="a", severity="low").encode(),
        alert(model="a", severity="critical", threat="drift").encode(), wanted.encode(),
    )  # fmt: skip
    shown = nnsec(
        "alerts", "--from-beginning", "--limit", "1", "--json", "--model", "a",
        "--severity", "high", "--threat", wanted.threat, settings=settings,
    )  # fmt: skip
    assert shown.status == 0, shown.error
    assert Alert.decode(shown.out.encode().strip()) == wanted
    assert "passed over" in shown.err


def test_people_get_one_line(nnsec: Nnsec, settings: Settings) -> None:
    """A line says when, how bad, what, by whom, on which model and why."""
    one = alert(severity="high")
    publish(settings, one.encode())
    shown = nnsec("alerts", "--from-beginning", "--limit", "1", settings=settings)
    assert shown.status == 0, shown.error
    (line,) = shown.out.splitlines()
    for part in ("high", one.threat, one.subject.id, one.model, one.explanation):
        assert part in line


def test_nothing_in_an_alert_orders_the_terminal_about() -> None:
    """Escape sequences are shown as replacement characters, markup as it is."""
    text = alerts.line(
        alert(explanation="[red]x\x1b[2J\r\n", subject={"kind": "client", "id": "\x07"})
    )
    assert "[red]x\N{REPLACEMENT CHARACTER}[2J" in text.plain
    assert text.plain.isprintable()


def test_an_unknown_name_lists_the_known(nnsec: Nnsec) -> None:
    """A threat or severity that does not exist would never show anything."""
    assert "evasion" in str(nnsec("alerts", "--threat", "evil").error)
    assert "critical" in str(nnsec("alerts", "--severity", "bad").error)
    assert isinstance(nnsec("alerts", "--severity", "bad").error, ConfigError)


def test_new_alerts_are_followed_until_ctrl_c(settings: Settings, tmp_path: Path) -> None:
    """Started before anything was said, it shows what comes; Ctrl-C ends it with status 0."""
    publish(settings, alert(seq=0).encode())
    file = tmp_path / "shown"
    with file.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", "alerts", "--json"], cwd=tmp_path, stdout=out,
            env=os.environ | variables(settings) | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        seq, deadline = 1, time.monotonic() + 30
        while not file.stat().st_size and time.monotonic() < deadline:
            publish(settings, alert(seq=seq).encode())
            seq += 1
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    first = Alert.decode(file.read_bytes().splitlines()[0])
    assert first.seq >= 1
    assert first.episode == UUID(json.loads(FIXTURE.read_text())["episode"])


@pytest.mark.parametrize("severity", ["info", "low", "medium", "high", "critical"])
def test_every_severity_has_a_style(severity: str) -> None:
    """No severity is shown without a colour of its own."""
    styles = {str(span.style) for span in alerts.line(alert(severity=severity)).spans}
    assert alerts.STYLES[alert(severity=severity).severity] in styles
