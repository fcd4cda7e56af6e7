"""Processes are started together, watched, and ended together, with nothing left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nnsec.settings import Settings, parse
from workers import fleet
from workers.fleet import Ended, Fleet

READY = """
import signal, sys, time
from pathlib import Path
import asyncio
from nnsec.adapters.probes import Probes
from nnsec.settings import load
async def main():
    problems = ["no model"]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Probes(load(), "view", lambda: problems):
        print(load().kafka.bootstrap_servers, load().redis.url, flush=True)
        while not Path("go").exists():
            await asyncio.sleep(0.05)
        problems.clear()
        await stop.wait()
asyncio.run(main())
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""
SETTINGS = parse(
    {"kafka": {"bootstrap_servers": "k:1", "drain_seconds": 0.3}, "redis": {"url": "redis://r:2"}}
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where roles are small programs in place of the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(fleet, "GRACE_SECONDS", 0.2)
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$4.py"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(fleet.sys, "executable", str(wrapper))
    (tmp_path / "view.py").write_text(READY)
    (tmp_path / "remediation.py").write_text(STUBBORN)
    (tmp_path / "trainer.py").write_text("print('no such file: x'); raise SystemExit(3)")
    return tmp_path


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_role_is_ready_when_it_says_so(programs: Path) -> None:
    """Its states are told in turn; it got the real addresses; stopped, it is gone with status 0."""
    said: list[str] = []

    def told(role: str, state: str) -> None:
        said.append(f"{role} {state}")
        if state == "no model":
            (programs / "go").touch()

    with Fleet(SETTINGS, None) as one:
        child = one.start("view")
        await one.ready(timeout=30, told=told)
        assert one.address("view")
        assert child.log.read_text().split() == ["k:1", "redis://r:2"]
        assert one.stop("view") == 0
        assert one.children == {}
    assert said[0] == "view starting"
    assert said[-2:] == ["view no model", "view ready"]
    assert gone(child.process.pid)


async def test_a_role_that_ends_is_an_error_with_its_last_words(programs: Path) -> None:
    """Nothing is started again silently: the message has the status and the log."""
    with Fleet(SETTINGS, None) as one:
        one.start("trainer").process.wait()
        with pytest.raises(Ended, match=r"trainer ended with status 3; .*\n.*no such file: x"):
            await one.ready(timeout=30)


async def test_what_is_late_is_named(programs: Path) -> None:
    """A role that never says that it is ready is told by name."""
    with Fleet(SETTINGS, None) as one:
        one.start("remediation")
        with pytest.raises(TimeoutError, match=r"within 0.2 s: remediation: starting"):
            await one.ready(timeout=0.2)


def test_what_does_not_end_is_killed(programs: Path) -> None:
    """A process that is deaf to SIGTERM is killed after the time that draining may take."""
    one = Fleet(SETTINGS, None)
    child = one.start("remediation")
    while not child.log.read_text():
        assert child.process.poll() is None
    assert one.close() == {"remediation": -9}
    assert gone(child.process.pid)


def test_a_second_interrupt_kills_at_once(programs: Path) -> None:
    """Whoever presses Ctrl-C twice is not left with processes."""
    one = Fleet(parse({"kafka": {"drain_seconds": 60.0}}), None)
    child = one.start("remediation")
    wait, calls = child.process.wait, []

    def interrupted(timeout: float | None = None) -> int:
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(timeout)

    child.process.wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        one.close()
    assert gone(child.process.pid)


def test_roles_are_started_with_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is passed on, so that a child reads what its parent read."""
    monkeypatch.setattr(fleet.sys, "executable", "/bin/echo")
    one = Fleet(Settings(), tmp_path / "c.toml", tmp_path)
    child = one.start("view")
    child.process.wait()
    assert child.log.read_text().split() == [
        "-m", "workers.cli", "--config", str(tmp_path / "c.toml"), "worker", "view",
    ]  # fmt: skip
