"""What stands above the inputs: which checkpoints serve, and which sources are shut out.

Every process reads `models` and `sources` with a consumer of its own, to the end before its first
input, and follows them from there. What it holds and serves it says on `models.status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from uuid import UUID

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.errors import NNSecError, SchemaError, TransientError, TrustError
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from schemas.model_status import ModelStatus, ServedModel
from schemas.source import Source
from streams.checkpoints import Checkpoints
from streams.swap import Active, Swap

STATUS_EVERY = 5.0
"""Seconds between two reports; silent for three of them means gone."""
RELOAD_AFTER = 2.0
"""Seconds until a registry that was away is asked again."""
TOPICS = ("models", "sources")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """What holds at one moment; agents read it once a batch, so that it changes between two."""

    active: Mapping[str, Active]
    quarantined: frozenset[str]
    sources_version: int


NOTHING = View(MappingProxyType({}), frozenset(), 0)


class Control:
    """The fold of `models` and `sources`, and the worker's report of what it made of them.

    An agent calls `settle` between two batches. A swap or a quarantine is reported only when
    every agent that ever settled has done so again since: whoever reads the report may rely on
    there being no older batch in hand.

    Parameters
    ----------
    settings:
        The configuration; `[models]`, `[trust] release_keys`, `[kafka]` and `[registry]` count.
    worker:
        Identity of this process in its reports.
    checkpoints:
        Where checkpoints are loaded; one of its own if not given.
    clock:
        Seconds that never go back.
    """

    def __init__(
        self,
        settings: Settings,
        worker: UUID,
        checkpoints: Checkpoints | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.worker = worker
        self.checkpoints = checkpoints or Checkpoints(settings)
        self._clock = clock
        self._keys = tuple(keys.load_public(path) for path in settings.trust.release_keys)
        self._swaps = {model: Swap(model) for model in settings.models}
        self._sources: dict[str, Source] = {}
        self._view = NOTHING
        self._settled: dict[str, View] = {}
        self._held: dict[str, tuple[int, ...]] = {}
        self._change = asyncio.Event()
        self._report = asyncio.Event()
        self._wish = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._tail: kafka.Tail | None = None
        self._leaving = False
        self.read = False
        """Whether both topics were read to their end once."""

    # --- what agents ask ---

    def active(self, model: str) -> Active | None:
        """The checkpoint that scores this model's inputs now; None while inputs must wait."""
        swap = self._swaps.get(model)
        return None if swap is None or swap.overdue(self._clock()) else swap.active

    def problem(self, model: str) -> str:
        """Why `active` is None, and what to do; empty otherwise."""
        swap = self._swaps.get(model)
        if swap is None:
            return f"model {model!r} is not configured; add [models.{model}]"
        return swap.problem(self._clock())

    def problems(self) -> tuple[str, ...]:
        """Everything that keeps this process from being ready."""
        if not self.read:
            return ("topics models and sources are not read to the end yet",)
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                return (f"models and sources are followed no more: {error!r}",)
        return tuple(filter(None, (self.problem(model) for model in self._swaps)))

    def quarantined(self, source: str) -> bool:
        """Whether all samples of a source must go to quarantine."""
        return source in self._view.quarantined

    @property
    def sources_version(self) -> int:
        """Highest version of a source statement read so far."""
        return self._view.sources_version

    def settle(self, role: str) -> None:
        """Say that all batches of a role that began earlier are finished and published."""
        if self._settled.get(role) is not self._view:
            self._settled[role] = self._view
            self._report.set()

    def hold(self, topic: str, partitions: Iterable[int]) -> None:
        """Note which partitions of a topic this process holds."""
        held = tuple(sorted(partitions))
        if self._held.get(topic) != held:
            self._held[topic] = held
            self._report.set()

    async def changed(self) -> None:
        """Wait until a checkpoint was activated or a source statement was read."""
        await self._change.wait()

    # --- folding ---

    def apply(self, record: Record) -> None:
        """Fold one record; what is invalid is ignored, with one line in the log."""
        where = f"{record.topic}/{record.partition}/{record.offset}"
        try:
            if record.topic == "models":
                self._apply_statement(record)
            else:
                self._apply_source(record)
        except (SchemaError, TrustError) as error:
            logger.warning("ignored %s: %s", where, error)

    def _apply_statement(self, record: Record) -> None:
        statement = statements.read_statement(record, self._keys)
        swap = self._swaps.get(statement.model)
        if swap is None:
            return
        swap.apply(statement, self._clock())
        logger.info(
            "model %s: %s of checkpoint %d in epoch %d",
            statement.model, statement.phase, statement.version, statement.epoch,
        )  # fmt: skip
        self._renew()
        self._wish.set()

    def _apply_source(self, record: Record) -> None:
        source = Source.decode(record.value)
        known = self._sources.get(source.source)
        if known is None or source.version > known.version:
            self._sources[source.source] = source
            self._renew()

    def _renew(self) -> None:
        """Make the view anew from what was folded, and wake those who wait for it."""
        self._view = View(
            MappingProxyType(
                {name: swap.active for name, swap in self._swaps.items() if swap.active is not None}
            ),
            frozenset(s.source for s in self._sources.values() if s.state == "quarantined"),
            max((source.version for source in self._sources.values()), default=0),
        )
        change, self._change = self._change, asyncio.Event()
        change.set()
        self._report.set()

    # --- loading ---

    async def load_wanted(self) -> bool:
        """Load what statements name and is not in memory yet.

        Returns
        -------
        bool
            Whether all that is wanted is now loaded or refused; else the registry is away.
        """
        complete = True
        for model, swap in self._swaps.items():
            while (wanted := swap.wanted()) is not None:
                version, digest, epoch = wanted
                try:
                    await asyncio.to_thread(self.checkpoints.prepare, model, version, digest)
                except TransientError as error:
                    logger.warning("model %s, checkpoint %d: %s", model, version, error)
                    complete = False
                    break
                except NNSecError as error:
                    logger.error("refused checkpoint %s/%d: %s", model, version, error)  # noqa: TRY400
                    swap.refuse(epoch, str(error))
                except Exception as error:
                    # A user's network may raise anything. No statement would be followed any more.
                    logger.exception("checkpoint %s/%d cannot be loaded", model, version)
                    swap.refuse(epoch, f"{type(error).__name__}: {error}"[:500])
                else:
                    swap.loaded(version, digest)
                    self.checkpoints.retain(model, swap.keep())
                self._renew()
        return complete

    # --- running ---

    async def start(self) -> None:
        """Read both topics to the end, then follow them, load and report in the background."""
        self._tail = kafka.Tail(self.settings, TOPICS)
        await self._tail.start()
        async for record in self._tail.to_end():
            self.apply(record)
        self.read = True
        self._report.set()
        for work in (self._follow(), self._load(), self._publish()):
            self._tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """Report that this worker leaves, and end."""
        self._leaving = True
        self._report.set()
        if self._tasks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._tasks.pop(), STATUS_EVERY)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._tail is not None:
            await self._tail.stop()

    async def _follow(self) -> None:
        assert self._tail is not None  # noqa: S101 - started before
        async for record in self._tail:
            self.apply(record)

    async def _load(self) -> None:
        self._wish.set()
        while True:
            await self._wish.wait()
            self._wish.clear()
            if not await self.load_wanted():
                await asyncio.sleep(RELOAD_AFTER)
                self._wish.set()

    async def _publish(self) -> None:
        """Report every 5 s, and at once when something changed."""
        async with kafka.publisher(self.settings) as publish:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._report.wait(), STATUS_EVERY)
                self._report.clear()
                last = self._leaving
                status = self.status(datetime.now(UTC))
                await publish(Out("models.status", status.encode(), str(self.worker).encode()))
                if last:
                    return

    def status(self, now: datetime) -> ModelStatus:
        """The report as of now."""
        views = tuple(self._settled.values()) or (self._view,)
        served: list[ServedModel] = []
        for model, swap in self._swaps.items():
            reported = [view.active.get(model) for view in views]
            oldest = (
                None
                if any(one is None for one in reported)
                else min((one for one in reported if one is not None), key=lambda one: one.epoch)
            )
            served.extend(swap.served(oldest))
        return ModelStatus(
            worker=self.worker,
            time=now,
            partitions=dict(self._held) if not self._leaving else {},
            models=tuple(served),
            sources_version=min(view.sources_version for view in views),
            leaving=self._leaving,
        )
