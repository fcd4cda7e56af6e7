"""The screen: every training sample is accepted or quarantined, with the reasons and figures.

A sample is judged by itself and beside the last ones of its source, in log order, so that batches
cut differently lead to the same. What a quarantined source sends is screened as anyone's and then
held, so that a release can pass over what would have been held anyway. A snapshot of the windows
and the offset it holds for are written to ``state``, the first one before the first commit, and
reading begins again from there. What lies below the committed offset has its outcome: it only
advances the windows then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from prometheus_client import Counter

from nnsec.adapters import kafka
from nnsec.adapters.declaration import config
from nnsec.adapters.positions import Bounds
from nnsec.adapters.records import Out, Record
from nnsec.errors import SchemaError, TransientError
from nnsec.evidence import ANONYMOUS
from nnsec.poisoning import Rated, Screened, ScreenSuite
from schemas.inference import Skipped
from schemas.topics import TOPICS
from schemas.training import TOPIC, check_labels, decode_sample
from streams.agent import Context
from streams.poison import dead_letter
from streams.score import SKIPPED, expected_models
from streams.screen_memory import Memory
from streams.screen_outs import Item, check_fits, outcomes, summaries
from streams.screen_state import Windows
from streams.swap import Active

SCREENED = Counter("nnsec_screened_samples", "Training samples screened", ["model", "verdict"])

Reader = Callable[[str], AsyncIterator[Record]]
FindBounds = Callable[[], Awaitable[Mapping[tuple[str, int], Bounds]]]


@dataclass(frozen=True, slots=True)
class Serving:
    """The checkpoint that screens a model's samples."""

    version: int
    suite: ScreenSuite


class ScreenAgent:
    """Screens `training.samples` with the checkpoint that serves their model.

    Parameters
    ----------
    context:
        What the process shares between roles.
    read:
        Reads a topic from the beginning to the end; for tests.
    bounds:
        Finds the bounds of every partition, and what the group committed; for tests.
    """

    role = "screen"
    topics = (TOPIC,)
    overlaps = True

    def __init__(
        self, context: Context, read: Reader | None = None, bounds: FindBounds | None = None
    ) -> None:
        self._context = context
        self._read = read or self._read_topic
        self._bounds = bounds or self._read_bounds
        self._expected = expected_models(context.settings)
        self._log = context.logs[TOPIC]
        declared = config(context.settings, TOPICS["training.accepted"])
        self._limit = int(declared["max.message.bytes"])
        self._memory = Memory(self._log)
        self._committed: dict[int, int] = {}
        """Before these offsets all outcomes are acknowledged, and are not written again."""
        self._served: dict[str, Active | None] = {}
        context.control.settle(self.role)

    # --- what the delivery layer asks ---

    async def assigned(
        self, partitions: frozenset[tuple[str, int]]
    ) -> Mapping[tuple[str, int], int]:
        """Take up what all partitions held remember, and begin where that ends.

        What lies between there and the committed offset is screened again, but not written again:
        the quarantine or the checkpoint may be another than when it was.
        """
        held = sorted(number for topic, number in partitions if topic == TOPIC)
        newest: dict[bytes, bytes] = {}
        committed: dict[int, int] = {}
        if held:
            async for record in self._read("state"):
                if record.key and record.key.startswith(b"screen/") and record.value is not None:
                    newest[record.key] = record.value
            bounds = await self._bounds()
            for number in held:
                found = bounds[TOPIC, number]
                committed[number] = found.begin if found.committed is None else found.committed
        starts = self._memory.take_up(committed, newest)
        self._committed = committed
        self._context.control.hold(TOPIC, held)
        return {(TOPIC, number): offset for number, offset in starts.items()}

    def settle(self) -> None:
        """Say that all batches that began earlier are published."""
        self._context.control.settle(self.role)

    async def tick(self, now: float) -> Sequence[Out]:
        """Write snapshots of what has changed; at once after a swap.

        So that what is read again after a kill was screened by the checkpoint that serves.
        """
        self.settle()
        serving = {model: self._context.control.active(model) for model in self._expected}
        if serving != self._served:
            self._memory.hurry()
            self._served = serving
        return await self._memory.tick(now)

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Screen one micro-batch with one forward pass a model.

        Returns
        -------
        Sequence[Out]
            First snapshots of partitions that have none; for each record its accepted and its
            quarantined samples or a dead letter, in the order of the records; the summaries.
            Nothing for records below the committed offset.

        Raises
        ------
        TransientError
            If a model has no checkpoint yet; it says what is missing.
        """
        found = [self._decode(record) for record in records]
        models = {one.sample.model for one in found if isinstance(one, Item)}
        serving = {model: self._serving(model) for model in models}
        entries = [self._admitted(one, serving) for one in found]
        items = [one for one in entries if isinstance(one, Item)]
        screened = await self._screen(items, serving)
        base = self._memory.base(records)
        states = {number: state.branch() for number, state in base.items()}
        rated = await asyncio.to_thread(_rate, items, screened, states)
        for record in records:
            states[record.partition].offset = record.offset + 1
        fresh = [
            entry for record, entry in zip(records, entries, strict=True)
            if record.offset >= self._committed.get(record.partition, 0)
        ]  # fmt: skip
        outs = self._memory.firsts(base) + self._outs(fresh, rated)
        self._memory.advance(base, states)
        return outs

    # --- one batch ---

    def _decode(self, record: Record) -> Item | Out | None:
        settings = self._context.settings
        try:
            found = decode_sample(
                record.key, record.value, record.headers,
                partition=record.partition, offset=record.offset, models=self._expected,
                limits=settings.limits, default_model=settings.kafka.default_model,
                identity_header=settings.kafka.identity_header,
            )  # fmt: skip
            if isinstance(found, Skipped):
                SKIPPED.labels(record.topic).inc()
                return None
            check_fits(found, self._limit)
        except SchemaError as error:
            return self._dead(record, error)
        return Item(record, found)

    def _dead(self, record: Record, error: SchemaError) -> Out:
        return dead_letter(self._context.settings, self._context.logs, record, error, attempts=1)

    def _serving(self, model: str) -> Serving:
        active = self._context.control.active(model)
        if active is None:
            raise TransientError(self._context.control.problem(model))
        found = self._context.checkpoints.get(model, active.version, active.digest)
        return Serving(active.version, found.screens)

    def _admitted(
        self, found: Item | Out | None, serving: Mapping[str, Serving]
    ) -> Item | Out | None:
        """Hold labels against the classes that the model has, which only the checkpoint knows."""
        if not isinstance(found, Item):
            return found
        sample, serves = found.sample, serving[found.sample.model]
        try:
            check_labels(sample.labels, serves.suite.network.classes, field=sample.label_field)
        except SchemaError as error:
            return self._dead(found.record, error)
        return replace(found, version=serves.version, shut=self._shut(sample.source))

    def _shut(self, source: str) -> bool:
        return source != ANONYMOUS and self._context.control.quarantined(source)

    async def _screen(
        self, items: Sequence[Item], serving: Mapping[str, Serving]
    ) -> dict[str, tuple[ScreenSuite, Screened]]:
        """Judge samples by themselves, those of a model at once, on the device's thread."""
        loop, found = asyncio.get_running_loop(), {}
        for model, serves in serving.items():
            own = [item.sample for item in items if item.sample.model == model]
            if own:
                x = np.concatenate([sample.x for sample in own])
                labels = np.concatenate([sample.labels for sample in own])
                work = partial(serves.suite.screen, x, labels)
                screened = await loop.run_in_executor(self._context.checkpoints.executor, work)
                found[model] = serves.suite, screened
        return found

    def _outs(self, entries: Sequence[Item | Out | None], rated: Mapping[int, Rated]) -> list[Out]:
        outs: list[Out] = []
        groups: dict[str, list[Item]] = {}
        for entry in entries:
            if isinstance(entry, Out):
                outs.append(entry)
            elif entry is not None:
                item = replace(entry, rated=rated[id(entry)])
                outs += outcomes(item, log=self._log, limit=self._limit)
                groups.setdefault(item.sample.model, []).append(item)
        for model, items in groups.items():
            outs += summaries(items, log=self._log)
            held = sum(item.held for item in items)
            SCREENED.labels(model, "quarantined").inc(held)
            SCREENED.labels(model, "accepted").inc(sum(len(i.sample) for i in items) - held)
        return outs

    async def _read_topic(self, topic: str) -> AsyncIterator[Record]:
        async for record in kafka.read_to_end(self._context.settings, (topic,)):
            yield record

    async def _read_bounds(self) -> Mapping[tuple[str, int], Bounds]:
        async with kafka.Positions(self._context.settings, self.role, self.topics) as positions:
            return await positions.read()


def _rate(
    items: Sequence[Item],
    screened: Mapping[str, tuple[ScreenSuite, Screened]],
    states: Mapping[int, Windows],
) -> dict[int, Rated]:
    """Judge samples beside the last ones of their sources, in log order; by the item's identity."""
    rated: dict[int, Rated] = {}
    done = dict.fromkeys(screened, 0)
    for item in items:
        model, size = item.sample.model, len(item.sample)
        suite, batch = screened[model]
        rows = range(done[model], done[model] + size)
        done[model] += size
        state = states[item.record.partition]
        window = state.open((model, item.sample.source), suite.geometry.places)
        rated[id(item)] = suite.advance(batch, rows, window, offset=item.record.offset)
    return rated
