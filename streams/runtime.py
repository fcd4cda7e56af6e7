"""The process of the streams: builds all from the settings, runs the roles, drains at its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

from nnsec.adapters.clients import outage
from nnsec.adapters.declaration import declare, limits
from nnsec.adapters.positions import commit_start
from nnsec.adapters.probes import Probes
from nnsec.adapters.publisher import Publisher
from nnsec.settings import Settings
from streams.agent import Agent, Context
from streams.apps import Role, keep_running
from streams.checkpoints import Checkpoints
from streams.control import Control
from streams.device import Device
from streams.roles import ROLES, build, topics

PROCESS = "stream"
SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Runtime:
    """All roles of one process, each with a group of its own.

    Parameters
    ----------
    agents:
        What to run in place of the roles named; for tests.
    apart:
        Whether inputs are scored in a process of its own.
    """

    def __init__(
        self,
        settings: Settings,
        names: Sequence[str],
        agents: Sequence[Agent] | None = None,
        *,
        apart: bool = True,
    ) -> None:
        self._settings = settings
        self._names = tuple(names)
        self._agents = agents
        self._roles: list[Role] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._state = "starting"
        self._control: Control | None = None
        self._apart = apart and agents is None and "score" in names
        self._device: Device | None = None

    def problems(self) -> tuple[str, ...]:
        """What keeps the process from being ready."""
        if self._state != "running":
            return (self._state,)
        found = [problem for role in self._roles for problem in role.problems()]
        if self._control is not None:
            found.extend(self._control.problems())
        if self._device is not None:
            found.extend(self._device.problems())
        if outage.since is not None:
            found.append("Kafka does not answer")
        return tuple(found)

    async def run(self, stop: asyncio.Event) -> None:
        """Start, and drain when told to stop; told so while it starts, it gives up the start.

        Raises
        ------
        ConfigError
            If the configuration, a topic or a checkpoint's key is wrong.
        """
        async with AsyncExitStack() as stack:
            if self._apart:
                # At once: what it imports takes as long as Kafka takes to answer.
                self._device = Device(self._settings)
                stack.callback(self._device.close)
            starting = asyncio.create_task(self._start(stack))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                    await stopping
            finally:
                self._state = "draining"
                for task in (starting, stopping):
                    task.cancel()
                await asyncio.gather(starting, stopping, return_exceptions=True)
            logger.info("draining")

    async def _start(self, stack: AsyncExitStack) -> None:
        """Do all that must come before the first input, in this order."""
        self._state = "waiting for Kafka"
        logs = await declare(self._settings, now=datetime.now(UTC))
        await self._fix_positions()
        self._state = "reading models and sources"
        agents = self._agents
        if agents is None:
            context = await stack.enter_async_context(self._context(logs))
            agents = [build(name, context) for name in self._names]
        publisher = Publisher(self._settings, limits(self._settings))
        stack.push_async_callback(publisher.stop)
        await publisher.start()
        self._roles = [Role(agent, publisher.submit, self._settings, logs) for agent in agents]
        stack.push_async_callback(self._drain)
        self._tasks = [asyncio.create_task(keep_running(role)) for role in self._roles]
        self._state = "running"

    async def _fix_positions(self) -> None:
        """Commit where groups begin that never ran: of all roles, here or elsewhere.

        So a role that starts later in another process misses nothing that this one leads to.
        """
        if self._agents is not None:
            wanted = {agent.role: agent.topics for agent in self._agents}
        else:
            wanted = {name: topics(name) for name in ROLES}
        await asyncio.gather(
            *(commit_start(self._settings, role, names) for role, names in wanted.items())
        )

    @asynccontextmanager
    async def _context(self, logs: Mapping[str, UUID]) -> AsyncIterator[Context]:
        """Read what stands above the inputs to its end, and follow it."""
        checkpoints = Checkpoints(self._settings, self._device)
        worker = uuid4()
        control = Control(self._settings, worker, checkpoints)
        try:
            await control.start()
            self._control = control
            yield Context(self._settings, logs, control, checkpoints, worker)
        finally:
            await control.stop()
            checkpoints.close()

    async def _drain(self) -> None:
        """Let every role finish the batch in hand, commit it, and leave its group."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        patience = self._settings.kafka.drain_seconds / 2
        await asyncio.gather(*(role.stop(patience) for role in self._roles))


async def run(
    settings: Settings,
    roles: Sequence[str] = (),
    *,
    agents: Sequence[Agent] | None = None,
    stop: asyncio.Event | None = None,
    apart: bool = True,
) -> int:
    """Run roles of the streams until SIGTERM or SIGINT.

    Parameters
    ----------
    roles:
        Names; empty for all.
    agents:
        What to run in place of roles; for tests.
    stop:
        Set to end as a signal does.
    apart:
        Whether inputs are scored in a process of its own.

    Returns
    -------
    int
        Exit status: 0 if it drained within ``[kafka] drain_seconds``, else 1; then threads may
        still hang, and the process is to be ended by force. Nothing is lost.

    Raises
    ------
    ConfigError
        If there is no such role, or the configuration or a topic is wrong.
    """
    names = tuple(dict.fromkeys(roles)) or tuple(ROLES)
    for name in names:
        topics(name)
    stop = stop or asyncio.Event()
    outage.listen()
    runtime = Runtime(settings, names, agents, apart=apart)
    with _signals(stop):
        async with Probes(settings, PROCESS, runtime.problems):
            return await _until_drained(runtime, stop, settings.kafka.drain_seconds)


async def _until_drained(runtime: Runtime, stop: asyncio.Event, seconds: float) -> int:
    work = asyncio.create_task(runtime.run(stop))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({work}, timeout=seconds)
    except asyncio.CancelledError:
        # Cancelled from outside is told to stop: what was begun is still ended in good order.
        stop.set()
        await asyncio.wait({work}, timeout=seconds)
        raise
    else:
        if done:
            work.result()
            return 0
        logger.error("not drained within %g s; what is unfinished will come again", seconds)
        return 1
    finally:
        stopping.cancel()
        work.cancel()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Have signals set the event, where this is the main thread."""
    loop = asyncio.get_running_loop()
    taken = []
    for number in SIGNALS:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
