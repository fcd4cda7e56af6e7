"""The screen: every training sample is accepted or quarantined, with the reasons and figures.

A sample is judged by itself and beside the last ones of its source, in log order, so that batches
cut differently lead to the same. State resumes exactly: a snapshot and the offset it holds for are
written to ``state``, the first one before the first commit, and reading begins again from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from prometheus_client import Counter, Gauge

from nnsec.adapters import kafka
from nnsec.adapters.declaration import config
from nnsec.adapters.records import Out, Record
from nnsec.errors import DigestMismatch, SchemaError, TransientError
from nnsec.evidence import ANONYMOUS
from nnsec.poisoning import Rated, Screened, ScreenSuite
from schemas.inference import Skipped
from schemas.topics import TOPICS
from schemas.training import TOPIC, check_labels, decode_sample
from streams.agent import Context
from streams.poison import dead_letter
from streams.score import SKIPPED, expected_models
from streams.screen_outs import Item, check_fits, outcomes, summaries
from streams.screen_state import Windows, restore, snapshot

SNAPSHOT_EVERY = 1.0
"""Seconds between two snapshots of a partition that has changed …"""
SNAPSHOT_RATE = 50_000
"""… and more for a large one: bytes a second that its snapshots may write."""

SCREENED = Counter("nnsec_screened_samples", "Training samples screened", ["model", "verdict"])
SOURCES = Gauge("nnsec_screen_sources", "Sources whose last samples are remembered", ["partition"])

logger = logging.getLogger(__name__)
Reader = Callable[[str], AsyncIterator[Record]]


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
    """

    role = "screen"
    topics = (TOPIC,)
    overlaps = True

    def __init__(self, context: Context, read: Reader | None = None) -> None:
        self._context = context
        self._read = read or self._read_topic
        self._expected = expected_models(context.settings)
        self._log = context.logs[TOPIC]
        declared = config(context.settings, TOPICS["training.accepted"])
        self._limit = int(declared["max.message.bytes"])
        self._states: dict[int, Windows] = {}
        self._before: dict[int, Windows] = {}
        self._written: dict[int, int] = {}
        """The slot of the last snapshot, of partitions that have one."""
        self._firsts: dict[int, Windows] = {}
        """As of when nothing was published yet, of partitions without a snapshot."""
        self._due: dict[int, float] = {}
        self._changed: set[int] = set()
        self._heads: list[Out] = []
        context.control.settle(self.role)

    # --- what the delivery layer asks ---

    async def assigned(
        self, partitions: frozenset[tuple[str, int]]
    ) -> Mapping[tuple[str, int], int]:
        """Take up the snapshots of all partitions held, and begin where they end.

        What was screened since is screened again, with the same outcome under the same ids: only
        then is it certain that everything in memory was published.
        """
        held = sorted(number for topic, number in partitions if topic == TOPIC)
        newest: dict[bytes, bytes] = {}
        if held:
            async for record in self._read("state"):
                if record.key and record.key.startswith(b"screen/") and record.value is not None:
                    newest[record.key] = record.value
        self._states, self._written, self._firsts = {}, {}, {}
        self._before, self._due, self._changed, self._heads = {}, {}, set(), []
        for number in held:
            try:
                found = restore(number, newest, log=self._log)
            except DigestMismatch as error:
                logger.warning("%s; its sources begin anew", error)
                continue
            if found is not None:
                self._states[number], self._written[number] = found
        self._context.control.hold(TOPIC, held)
        return {(TOPIC, number): state.offset for number, state in self._states.items()}

    def settle(self) -> None:
        """Say that all batches that began earlier are published."""
        self._context.control.settle(self.role)

    async def tick(self, now: float) -> Sequence[Out]:
        """Write snapshots of what has changed; all of it is published by now."""
        self.settle()
        self._before.clear()
        outs, self._heads = self._heads, []
        for number in sorted(self._changed):
            if now >= self._due.get(number, 0.0):
                parts, head = await self._snapshot(number)
                size = sum(len(out.value or b"") for out in (*parts, head))
                self._due[number] = now + max(SNAPSHOT_EVERY, size / SNAPSHOT_RATE)
                outs += parts or [head]
                self._heads += [head] if parts else []
        return outs

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Screen one micro-batch with one forward pass a model.

        Returns
        -------
        Sequence[Out]
            First snapshots of partitions that have none; for each record its accepted and its
            quarantined samples or a dead letter, in the order of the records; the summaries.

        Raises
        ------
        TransientError
            If a model has no checkpoint yet; it says what is missing.
        """
        found = [self._decode(record) for record in records]
        models = {one.sample.model for one in found if isinstance(one, Item)}
        serving = {model: self._serving(model) for model in models}
        entries = [self._admitted(one, serving) for one in found]
        suspects = [
            one for one in entries if isinstance(one, Item) and not self._shut(one.sample.source)
        ]
        screened = await self._screen(suspects, serving)
        base = self._base(records)
        states = {number: state.branch() for number, state in base.items()}
        rated = await asyncio.to_thread(_rate, suspects, screened, states)
        for record in records:
            states[record.partition].offset = record.offset + 1
        outs = self._first_snapshots(base) + self._outs(entries, rated)
        self._before |= base
        self._states |= states
        self._changed |= states.keys()
        for number, state in states.items():
            SOURCES.labels(str(number)).set(len(state))
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
        return replace(found, version=serves.version)

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

    def _base(self, records: Sequence[Record]) -> dict[int, Windows]:
        """The state of each partition as it was before the first of these records.

        Records come again when publishing failed: then what they led to is forgotten first.
        """
        base: dict[int, Windows] = {}
        for record in records:
            number, offset = record.partition, record.offset
            if number in base:
                continue
            state = self._states.get(number) or Windows(offset)
            before = self._before.get(number)
            again = before is not None and before.offset <= offset < state.offset
            base[number] = before if again and before is not None else state
        return base

    def _first_snapshots(self, base: Mapping[int, Windows]) -> list[Out]:
        """Snapshots from before the first records of partitions that have none.

        Until a tick has written one they are of the same moment: earlier batches may still be on
        their way, so what comes behind them must not be where a successor begins.
        """
        outs = []
        for number, state in base.items():
            if number not in self._written:
                first = self._firsts.setdefault(number, state)
                parts, head = snapshot(number, first, log=self._log, slot=1)
                outs += [*parts, head]
        return outs

    def _outs(self, entries: Sequence[Item | Out | None], rated: Mapping[int, Rated]) -> list[Out]:
        outs: list[Out] = []
        groups: dict[str, list[Item]] = {}
        for entry in entries:
            if isinstance(entry, Out):
                outs.append(entry)
            elif entry is not None:
                item = replace(entry, rated=rated.get(id(entry)))
                outs += outcomes(item, log=self._log, limit=self._limit)
                groups.setdefault(item.sample.model, []).append(item)
        for model, items in groups.items():
            outs += summaries(items, log=self._log)
            held = sum(item.held for item in items)
            SCREENED.labels(model, "quarantined").inc(held)
            SCREENED.labels(model, "accepted").inc(sum(len(i.sample) for i in items) - held)
        return outs

    # --- snapshots ---

    async def _snapshot(self, number: int) -> tuple[list[Out], Out]:
        """Write a partition's state; the head of one in several parts waits for the next tick."""
        state, slot = self._states[number], 1 - self._written.get(number, 1)
        parts, head = await asyncio.to_thread(snapshot, number, state, log=self._log, slot=slot)
        self._changed.discard(number)
        self._firsts.pop(number, None)
        self._written[number] = slot
        return parts, head

    async def _read_topic(self, topic: str) -> AsyncIterator[Record]:
        async for record in kafka.read_to_end(self._context.settings, (topic,)):
            yield record


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
