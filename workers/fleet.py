"""The processes of one machine, started together as children, watched, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from nnsec.errors import NNSecError
from nnsec.settings import Settings
from workers import probing
from workers.embedded import with_parent

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""Added to ``drain_seconds`` before a process that does not end is killed."""
LAST_LINES = 15

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "stream": ("stream",),
    "view": ("worker", "view"),
    "remediation": ("worker", "remediation"),
    "trainer": ("worker", "trainer"),
}
"""What starts a role; its process names itself by the same word in its probes."""


class Ended(NNSecError):  # noqa: N818 - the name says what happened
    """A process ended by itself; the message holds the last lines of its log."""


@dataclass(slots=True)
class Child:
    """One process and where its log is."""

    role: str
    process: subprocess.Popen[bytes]
    log: Path


class Fleet:
    """Starts roles as processes of the same command line; a context manager that ends them.

    Nothing is started again by itself: a process that ends is an error that is said.

    Parameters
    ----------
    settings:
        With the real addresses of the services, which the children are given.
    config:
        The configuration file that the children read; None for none.
    folder:
        Where logs and the addresses of probes are.
    """

    def __init__(
        self, settings: Settings, config: str | Path | None, folder: str | Path = ".nnsec"
    ) -> None:
        self._settings = settings
        self._config = config
        self._run = Path(folder) / "run"
        self.children: dict[str, Child] = {}

    def start(self, role: str) -> Child:
        """Start one role; it inherits the environment, the broker and the store."""
        self._run.mkdir(parents=True, exist_ok=True)
        log = self._run / f"{role}.log"
        command = [sys.executable, "-m", "workers.cli"]
        if self._config is not None:
            command += ["--config", str(self._config)]
        command += COMMANDS[role]
        environ = os.environ | {
            "NNSEC_KAFKA__BOOTSTRAP_SERVERS": self._settings.kafka.bootstrap_servers,
            "NNSEC_REDIS__URL": self._settings.redis.url,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                with_parent(command, "TERM"), stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, env=environ, start_new_session=True,
            )  # fmt: skip
        child = self.children[role] = Child(role, process, log)
        return child

    def check(self) -> None:
        """See that all that was started still runs.

        Raises
        ------
        Ended
            Naming the first that does not.
        """
        for child in self.children.values():
            code = child.process.poll()
            if code is not None:
                lines = child.log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
                raise Ended(
                    f"{child.role} ended with status {code}; see {child.log}\n" + "\n".join(lines)
                )

    async def ready(
        self,
        roles: Sequence[str] = (),
        *,
        timeout: float = 60.0,  # noqa: ASYNC109 - it says on what it waited
        told: Callable[[str, str], None] | None = None,
    ) -> None:
        """Wait until roles are ready.

        Parameters
        ----------
        roles:
            Empty for all that were started.
        timeout:
            s.
        told:
            Called with a role and what it waits for, whenever that changes; ``ready`` at last.

        Raises
        ------
        Ended
            If one of them ends.
        TimeoutError
            Naming what is not ready, and why.
        """
        deadline = time.monotonic() + timeout
        said: dict[str, str] = {}
        waiting = list(roles or self.children)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            while waiting:
                self.check()
                for role in list(waiting):
                    state = await self._state(session, role)
                    if said.get(role) != state:
                        said[role] = state
                        if told is not None:
                            told(role, state)
                    if state == probing.READY:
                        waiting.remove(role)
                if waiting and time.monotonic() > deadline:
                    late = "; ".join(f"{role}: {said[role]}" for role in waiting)
                    raise TimeoutError(f"not ready within {timeout:g} s: {late}")
                await asyncio.sleep(POLL_SECONDS)

    async def _state(self, session: aiohttp.ClientSession, role: str) -> str:
        address = self.address(role)
        if address is None:
            return "starting"
        return await probing.state(session, address)

    def address(self, role: str) -> str | None:
        """Where a role serves its probes; None while it does not."""
        child = self.children[role]
        found = probing.place(self._run / f"{role}-{child.process.pid}.json")
        return found.address if found else None

    def stop(self, role: str) -> int:
        """End one role in good order; returns its exit status."""
        child = self.children.pop(role)
        return self._end([child])[role]

    def close(self) -> dict[str, int]:
        """End all at the same time; returns their exit statuses."""
        children = list(self.children.values())
        self.children.clear()
        return self._end(children)

    def _end(self, children: Sequence[Child]) -> dict[str, int]:
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.kafka.drain_seconds + GRACE_SECONDS
        try:
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # after the time, or a second Ctrl-C
            for child in children:
                if child.process.poll() is None:
                    child.process.kill()
                    child.process.wait()
        return {child.role: child.process.returncode for child in children}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
