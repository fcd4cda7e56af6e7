"""One run of the demo, from an empty folder to the summary."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live as Screen

from nnsec.adapters import kafka
from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Checkpoint, load
from nnsec.errors import NNSecError, TransientError
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from workers import embedded
from workers.demo import stage
from workers.demo.director import Director
from workers.demo.ledger import TOPICS, Ledger
from workers.demo.live import Live
from workers.demo.material import Material
from workers.demo.rehearsal import Rehearsal, rehearse
from workers.demo.sender import Sender
from workers.demo.summary import Summary, summarise
from workers.fleet import Fleet

ROLES = ("stream", "remediation", "trainer", "view")
FRAMES = 5.0
"""Pictures a second."""
READY_SECONDS = 90.0
THREADS = "OMP_NUM_THREADS"


class Stopped(Exception):  # noqa: N818 - no error: the demo was asked to end
    """Ends training between two steps."""


BEFORE = ("broker, store and workers start", "a first checkpoint is made", "workers get ready")


@dataclass(slots=True)
class Demo:
    """A run.

    Parameters
    ----------
    settings:
        Kafka and Redis count: what is ``embedded`` is started, anything else is used as it is.
    material:
        What is sent, and what the network is trained on.
    console:
        Where the picture is drawn.
    seed:
        Of all that is drawn.
    began:
        When the run began, in the seconds of `time.monotonic`.
    done:
        Is given the summary, before the services end.
    """

    settings: Settings
    material: Material
    console: Console
    seed: int
    began: float
    done: Callable[[Summary], object]

    def run(self, *, keep_running: bool = False) -> Summary:
        """Play, and count.

        Parameters
        ----------
        keep_running:
            Whether the monitor stays up afterwards until Ctrl-C.

        Raises
        ------
        NNSecError
            If a process ends or something cannot be set up.
        """
        # Five processes share the cores: each computes with one thread unless the user says else.
        os.environ.setdefault(THREADS, "1")
        with ExitStack() as stack:
            # First: it refuses where another process runs, whose keys and registry `clear` removes.
            resolved = embedded.resolve(self.settings, stack)
            settings, config = self._configure(stage.clear(), resolved)
            fleet = stack.enter_context(Fleet(settings, config))
            try:
                return asyncio.run(self._run(settings, fleet, keep_running))
            except asyncio.CancelledError:  # by SIGTERM
                raise KeyboardInterrupt from None

    def _configure(self, folder: Path, resolved: Settings) -> tuple[Settings, Path]:
        """Write keys, reference data and ``nnsec.toml``."""
        for role in ("release", "operator"):
            keys.write_new(folder / role)
        material = self.material
        reference = folder / f"reference-{material.name}.npz"
        np.savez(reference, x=material.reference_x, y=material.reference_y)
        tables = stage.configuration(folder, resolved, material.name, material.spec, self.seed)
        config = folder / "nnsec.toml"
        config.write_text(stage.to_toml(tables) + "\n", "utf-8")
        return parse(tomllib.loads(config.read_text("utf-8"))), config

    async def _run(self, settings: Settings, fleet: Fleet, keep_running: bool) -> Summary:
        if task := asyncio.current_task():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        ledger = Ledger(tuple(keys.load_public(path) for path in settings.trust.release_keys))
        said = str if self.console.is_terminal else self.console.print
        live = Live(ledger, len(BEFORE) + len(Director.STEPS), said)
        with _screen(self.console) as screen:
            try:
                async with asyncio.TaskGroup() as group:
                    drawing = group.create_task(_draw(screen, live, fleet))
                    await self._acts(settings, fleet, ledger, live)
                    live.end()
                    drawing.cancel()
            except* NNSecError as found:
                raise _first(found) from None
            finally:
                screen.update(live.render(time.monotonic()), refresh=True)
        seconds = time.monotonic() - self.began
        summary = await asyncio.to_thread(
            summarise, ledger, dataset=self.material.name, seconds=seconds,
            predict=Predictions(settings, self.material.name),
        )  # fmt: skip
        self.done(summary)
        if keep_running:
            await _forever(fleet)
        return summary

    async def _acts(self, settings: Settings, fleet: Fleet, ledger: Ledger, live: Live) -> None:
        live.begin(BEFORE[0])
        await kafka.declare(settings, now=datetime.now(UTC))
        for role in ROLES:
            fleet.start(role)
        live.begin(BEFORE[1])
        prepared = await _in_thread(settings, self.material, self.seed, live)
        live.begin(BEFORE[2])
        async with _watched(settings, ledger), _sending(settings) as producer:
            await prepared.release(settings)
            await _ready(fleet, live)
            sender = Sender(producer, settings, self.material.name, ledger, time.monotonic)
            await Director(prepared.script, sender, ledger, live, time.monotonic).play()


class Predictions:
    """What the checkpoints of a registry make of inputs; each is loaded once.

    Parameters
    ----------
    settings:
        ``[registry]``, ``[models]`` and ``[trust] release_keys`` count.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self._settings = settings
        self._model = model
        self._found: dict[int, Checkpoint] = {}

    def __call__(self, version: int, x: NDArray[Any]) -> NDArray[np.int64]:
        r"""(n,) classes of (n, \*shape) inputs in the wire dtype."""
        if version not in self._found:
            self._found[version] = load(
                Registry(self._settings.registry.url), self._model, version,
                release_keys=[keys.load_public(p) for p in self._settings.trust.release_keys],
                spec=self._settings.models[self._model],
            )  # fmt: skip
        return self._found[version].network.forward(x).prediction


@contextmanager
def _screen(console: Console) -> Iterator[Screen]:
    """Where the picture is drawn; what is said after it begins on a line of its own."""
    try:
        with Screen(console=console, auto_refresh=False) as screen:
            yield screen
    finally:
        if not console.is_terminal:
            console.line()


async def _draw(screen: Screen, live: Live, fleet: Fleet) -> None:
    """Draw a few times a second, and see that every process runs."""
    while True:
        fleet.check()
        screen.update(live.render(time.monotonic()), refresh=True)
        await asyncio.sleep(1 / FRAMES)


async def _ready(fleet: Fleet, live: Live) -> None:
    """Wait until every process is ready, saying what for."""

    def told(role: str, state: str) -> None:
        live.detail = f"{role}: {state}"

    try:
        await fleet.ready(timeout=READY_SECONDS, told=told)
    except TimeoutError as error:
        raise TransientError(str(error)) from error


async def _in_thread(settings: Settings, material: Material, seed: int, live: Live) -> Rehearsal:
    """Train and write the script in a thread, which ends if the demo does."""
    over = threading.Event()

    def progress(text: str) -> None:
        if over.is_set():
            raise Stopped
        live.detail = text

    try:
        return await asyncio.to_thread(rehearse, settings, material, seed, progress)
    finally:
        over.set()


@asynccontextmanager
async def _watched(settings: Settings, ledger: Ledger) -> AsyncIterator[None]:
    """Read all that the monitor writes while the block runs."""
    tail = kafka.Tail(settings, TOPICS)
    await tail.start()

    async def follow() -> None:
        async for record in tail:
            ledger.read(record, time.monotonic())

    try:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow())
            yield
            following.cancel()
    finally:
        await tail.stop()


@asynccontextmanager
async def _sending(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    producer = await kafka.connected(lambda: kafka.producer(settings))
    try:
        yield producer
    finally:
        await kafka.closed(producer)


async def _forever(fleet: Fleet) -> None:
    """Keep everything up until Ctrl-C."""
    while True:
        fleet.check()
        await asyncio.sleep(1.0)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first error in nested groups."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
