"""The join: labels meet the scores of the inputs that they speak of, on the partition of their id.

What a partition remembers is bounded and is rebuilt from the log: whoever gets it reads the newest
scores and labels before the committed offsets, and then goes on. A pair that met within the last
commit before a kill may be told twice if its two records come in the other order then.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from aiokafka.partitioner import murmur2
from prometheus_client import Counter

from nnsec.adapters import kafka
from nnsec.adapters.positions import Bounds
from nnsec.adapters.records import Out, Record
from nnsec.errors import ConfigError, SchemaError
from schemas.base import from_millis
from schemas.headers import event_headers
from schemas.label import Label
from schemas.summary import LABEL_ROW, Summary
from streams.agent import Context
from streams.pairs import MOST, Pair, Pairs
from streams.poison import dead_letter
from streams.times import stream_time

LABELS, SCORES = "labels", "scores"
FORWARDED = "nnsec-forwarded"
"""Header that says where a label first lay; a label is forwarded once."""

MET = Counter("nnsec_labels_met", "Labels that met their score", ["model"])

Place = tuple[str, int]
FindBounds = Callable[[], Awaitable[Mapping[Place, Bounds]]]
Read = Callable[[Mapping[Place, int]], AsyncIterator[Record]]


class JoinAgent:
    """Joins `labels` and `scores`, partition by partition.

    Parameters
    ----------
    context:
        What the process shares between roles.
    bounds:
        Finds the bounds of every partition of both topics; for tests.
    read:
        Reads partitions from an offset each to the end; for tests.
    """

    role = "join"
    topics = (LABELS, SCORES)
    overlaps = True

    def __init__(
        self, context: Context, bounds: FindBounds | None = None, read: Read | None = None
    ) -> None:
        self._context = context
        self._bounds = bounds or self._read_bounds
        self._read = read or self._read_records
        self._pairs: dict[int, Pairs] = {}
        self._count = 0

    async def assigned(self, partitions: frozenset[Place]) -> None:
        """Rebuild what the partitions held remember, as of the committed offsets.

        Raises
        ------
        ConfigError
            If `labels` has fewer partitions than `scores`: some labels could never meet theirs.
        """
        held = {number for _, number in partitions}
        found = await self._bounds()
        counts = {name: sum(topic == name for topic, _ in found) for name in self.topics}
        if counts[LABELS] < counts[SCORES]:
            raise ConfigError(
                f"labels has {counts[LABELS]} partitions and scores {counts[SCORES]}; "
                "give labels as many"
            )
        self._count = counts[SCORES]
        self._pairs = {number: Pairs() for number in held}
        ends = {place: b.committed for place, b in found.items() if place[1] in held}
        start = {place: max(found[place].begin, end - MOST) for place, end in ends.items() if end}
        async for record in self._read(start):
            if record.offset < (ends[record.topic, record.partition] or 0):
                # What was forwarded, or became a dead letter, did so in its time.
                self._take(record, [])

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Take in a batch: summaries of what met, labels to forward, dead letters."""
        outs: list[Out] = []
        met = [(record, pair) for record in records for pair in self._take(record, outs)]
        return outs + [self._summary(*found) for found in _cut(met)]

    async def tick(self, now: float) -> Sequence[Out]:  # noqa: ARG002 - the interface of agents
        """Nothing depends on time."""
        return ()

    def _take(self, record: Record, outs: list[Out]) -> list[Pair]:
        """What a record leads to: pairs that met, or a record to write."""
        pairs = self._pairs.setdefault(record.partition, Pairs())
        if record.topic == SCORES:
            return pairs.add_score((record.key or b"").decode("utf-8", "replace"), record)
        try:
            label = Label.decode(record.value, limit=self._context.settings.limits.bytes)
        except SchemaError as error:
            outs.append(dead_letter(self._context.settings, self._context.logs, record, error, 1))
            return []
        place = int(murmur2(label.id.encode()) & 0x7FFFFFFF) % self._count  # as aiokafka and Java
        if place != record.partition and not any(name == FORWARDED for name, _ in record.headers):
            outs.append(_forward(record, label, place))
            return []
        pair = pairs.add_label(label.id, label.row, label.label)
        return [] if pair is None else [pair]

    def _summary(
        self, model: str, version: int, topic: str, met: Sequence[tuple[Record, Pair]]
    ) -> Out:
        clients: dict[str, int] = {}
        rows = np.array(
            [
                (record.partition, record.offset, pair.row,
                 clients.setdefault(pair.client, len(clients)), pair.prediction, pair.label)
                for record, pair in met
            ],
            LABEL_ROW,
        )  # fmt: skip
        first, log = met[0][0], self._context.logs[topic]
        time = from_millis(max(record.timestamp for record, _ in met))
        summary = Summary.pack(
            rows, kind="label", log=log, topic=topic, model=model, model_version=str(version),
            time=stream_time(time, now=datetime.now(UTC)), subjects=tuple(clients),
        )  # fmt: skip
        name = uuid.uuid5(log, f"{topic}/{first.partition}/{first.offset}/summary/{version}")
        headers = event_headers("summary", id=str(name), source_role=self.role, time=time)
        MET.labels(model).inc(len(met))
        return Out("summaries", summary.encode(), model.encode(), headers)

    async def _read_bounds(self) -> Mapping[Place, Bounds]:
        async with kafka.Positions(self._context.settings, self.role, self.topics) as positions:
            return await positions.read()

    async def _read_records(self, start: Mapping[Place, int]) -> AsyncIterator[Record]:
        async for record in kafka.read_to_end(
            self._context.settings, self.topics, start, only=True
        ):
            yield record


def _cut(
    met: Sequence[tuple[Record, Pair]],
) -> list[tuple[str, int, str, list[tuple[Record, Pair]]]]:
    """Model, version, topic and rows of each summary.

    Where the version changes along a partition a later summary begins: the owner of the model takes
    a row below one that it has applied for a redelivered one.
    """
    last: dict[tuple[str, str, int], tuple[int, int]] = {}
    found: dict[tuple[int, str, int, str], list[tuple[Record, Pair]]] = {}
    for record, pair in met:
        place = pair.model, record.topic, record.partition
        turn, version = last.get(place, (0, pair.version))
        turn += version != pair.version
        last[place] = turn, pair.version
        key = turn, pair.model, pair.version, record.topic
        found.setdefault(key, []).append((record, pair))
    in_turn = sorted(found.items(), key=lambda item: item[0][0])
    return [(model, version, topic, rows) for (_, model, version, topic), rows in in_turn]


def _forward(record: Record, label: Label, place: int) -> Out:
    origin = f"{record.topic}/{record.partition}/{record.offset}"
    headers = (*record.headers, (FORWARDED, origin.encode()))
    return Out(LABELS, record.value, label.id.encode(), headers, partition=place)
