"""The join: labels meet scores whichever comes first, in bounded memory, and after a restart."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from aiokafka.partitioner import murmur2

from nnsec.adapters import kafka
from nnsec.adapters.positions import Bounds, commit_start
from nnsec.adapters.records import Out, Record
from nnsec.errors import ConfigError
from nnsec.settings import Settings, parse
from schemas.base import to_millis
from schemas.dead_letter import decode_dead_letter
from schemas.inference import Request
from schemas.label import Label
from schemas.score import encode_score
from schemas.summary import Summary
from schemas.topics import TOPICS
from streams import pairs as remembered
from streams.agent import Context
from streams.join import FORWARDED, LABELS, SCORES, JoinAgent

STAMP = to_millis(datetime(2026, 1, 2, tzinfo=UTC))
LOGS = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in TOPICS}
COUNT = 4


def place(name: str) -> int:
    return (murmur2(name.encode()) & 0x7FFFFFFF) % COUNT


def score(
    name: str,
    offset: int,
    *,
    prediction: Sequence[int] = (1,),
    client: str = "c",
    version: int = 1,
) -> Record:
    rows = len(prediction)
    request = Request(name, "digits", client, "json", np.zeros((rows, 1), np.uint8), None, ())
    value, headers = encode_score(
        request, version=version, log=LOGS["inference.inputs"], topic="inference.inputs",
        partition=0, offset=offset, timestamp=STAMP, detectors=("d",),
        prediction=np.array(prediction, np.int64), confidence=np.ones(rows, np.float32),
        p_value=np.ones(rows, np.float32), p_values=np.ones((rows, 1), np.float32),
        coverage=np.ones(rows, np.float32), verdict=["allow"] * rows,
    )  # fmt: skip
    return Record(SCORES, place(name), offset, STAMP, name.encode(), value, headers)


def label(
    name: str,
    offset: int,
    value: int,
    *,
    row: int = 0,
    partition: int | None = None,
    headers: Any = (),
) -> Record:
    body = Label(id=name, row=row, label=value).encode()
    where = place(name) if partition is None else partition
    return Record(LABELS, where, offset, STAMP + offset, b"any", body, headers)


class Logs:
    """What the topics hold, and what was committed of it."""

    def __init__(self, labels: int = COUNT) -> None:
        self.records: list[Record] = []
        self.committed: dict[tuple[str, int], int] = {}
        self.labels = labels

    async def bounds(self) -> Mapping[tuple[str, int], Bounds]:
        counts = {LABELS: self.labels, SCORES: COUNT}
        return {
            (topic, number): Bounds(0, 10_000, self.committed.get((topic, number), 0))
            for topic, count in counts.items()
            for number in range(count)
        }

    async def read(self, start: Mapping[tuple[str, int], int]) -> AsyncIterator[Record]:
        for record in self.records:
            where = record.topic, record.partition
            if where in start and record.offset >= start[where]:
                yield record

    async def agent(self) -> JoinAgent:
        context = SimpleNamespace(settings=parse({}), logs=LOGS)
        agent = JoinAgent(cast("Context", context), self.bounds, self.read)
        await agent.assigned(frozenset((t, n) for t in (LABELS, SCORES) for n in range(COUNT)))
        return agent


def told(outs: Sequence[Out]) -> list[tuple[str, int, int, int, str, int, int]]:
    """(topic, partition, offset, row, client, prediction, label) of every row."""
    found = []
    for out in outs:
        assert (out.topic, out.key) == ("summaries", b"digits")
        summary = Summary.decode(out.value)
        assert summary.log == LOGS[summary.topic]
        for partition, offset, row, subject, prediction, true in summary.unpack().tolist():
            client = summary.subjects[subject]
            found.append((summary.topic, partition, offset, row, client, prediction, true))
    return found


async def test_a_label_meets_its_score() -> None:
    """Client, prediction and version come from the score, the position is the label's."""
    agent = await Logs().agent()
    assert await agent.process([score("a", 3, prediction=(7,), client="x", version=5)]) == []
    outs = await agent.process([label("a", 9, 2)])
    assert told(outs) == [(LABELS, place("a"), 9, 0, "x", 7, 2)]
    summary = Summary.decode(outs[0].value)
    assert (summary.model_version, to_millis(summary.time)) == ("5", STAMP + 9)
    headers = dict(outs[0].headers)
    assert headers["ce_type"] == b"nnsec.summary.v1"
    assert headers["ce_source"] == b"/nnsec/join"


async def test_a_timestamp_of_the_future_moves_no_time() -> None:
    """A summary is at most 5 s ahead of the clock."""
    agent = await Logs().agent()
    await agent.process([score("a", 3)])
    later = to_millis(datetime.now(UTC) + timedelta(days=400))
    (out,) = await agent.process([replace(label("a", 9, 2), timestamp=later)])
    assert Summary.decode(out.value).time <= datetime.now(UTC) + timedelta(seconds=5)


async def test_a_label_that_comes_first_waits() -> None:
    """It is told at the score's position, so that positions only grow in either topic."""
    agent = await Logs().agent()
    assert await agent.process([label("a", 1, 4, row=1), label("a", 2, 3, row=0)]) == []
    outs = await agent.process([score("a", 8, prediction=(3, 3, 3))])
    assert told(outs) == [
        (SCORES, place("a"), 8, 0, "c", 3, 3),
        (SCORES, place("a"), 8, 1, "c", 3, 4),
    ]
    assert await agent.process([label("a", 3, 1, row=2)]) != []


async def test_a_row_counts_one_label_and_an_unknown_row_none() -> None:
    """Repeating a label, or labelling what was not sent, moves nothing."""
    agent = await Logs().agent()
    await agent.process([score("a", 1)])
    assert len(told(await agent.process([label("a", 1, 0), label("a", 2, 0)]))) == 1
    assert await agent.process([label("a", 3, 0), label("a", 4, 0, row=1)]) == []
    await agent.process([label("b", 5, 0), label("b", 6, 1)])
    assert [row[-1] for row in told(await agent.process([score("b", 2)]))] == [0]


async def test_the_newest_score_of_an_id_counts() -> None:
    """Ids belong to users and may repeat."""
    agent = await Logs().agent()
    await agent.process([score("a", 1, prediction=(1,)), score("a", 2, prediction=(2,))])
    assert [row[5] for row in told(await agent.process([label("a", 1, 0)]))] == [2]


def names(partition: int, count: int) -> list[str]:
    found = (f"i{n}" for n in itertools.count())
    return list(itertools.islice((name for name in found if place(name) == partition), count))


async def test_one_summary_for_each_checkpoint() -> None:
    """A summary speaks of one version, and takes the rows of all partitions."""
    agent = await Logs().agent()
    chosen = [name for partition in range(COUNT) for name in names(partition, 3)]
    await agent.process(
        [score(name, n, version=1 + place(name) % 2) for n, name in enumerate(chosen)]
    )
    outs = await agent.process([label(name, n, 1) for n, name in enumerate(chosen)])
    assert [len(Summary.decode(out.value).unpack()) for out in outs] == [6, 6]
    assert {Summary.decode(out.value).model_version for out in outs} == {"1", "2"}
    assert len({dict(out.headers)["ce_id"] for out in outs}) == 2


@pytest.mark.parametrize("size", [1, 7, 24])
async def test_positions_only_grow_over_the_summaries_of_two_checkpoints(size: int) -> None:
    """However labels are cut into batches: the owner of the model drops what lies below."""
    agent = await Logs().agent()
    chosen = [name for pair in zip(names(0, 12), names(1, 12), strict=True) for name in pair]
    versions = [1, 1, 2, 1, 2, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 2, 1, 2, 2, 2, 1, 1, 2, 1]
    scores = [
        score(name, n, version=v) for n, (name, v) in enumerate(zip(chosen, versions, strict=True))
    ]
    await agent.process(scores)
    labels = [label(name, n, 1) for n, name in enumerate(chosen)]
    outs = [out for n in range(0, 24, size) for out in await agent.process(labels[n : n + size])]
    rows = told(outs)
    assert len(rows) == 24
    for partition in range(2):
        found = [offset for _, number, offset, *_ in rows if number == partition]
        assert found == sorted(found)
    assert len({dict(out.headers)["ce_id"] for out in outs}) == len(outs) <= 24


async def test_a_label_elsewhere_is_forwarded_once() -> None:
    """With its bytes and a header that says where it came from, to the partition of its id."""
    agent = await Logs().agent()
    await agent.process([score("a", 1)])
    wrong = (place("a") + 1) % COUNT
    sent = label("a", 5, 1, partition=wrong, headers=(("h", b"v"),))
    (out,) = await agent.process([sent])
    assert (out.topic, out.partition, out.key, out.value) == (LABELS, place("a"), b"a", sent.value)
    assert out.headers == (("h", b"v"), (FORWARDED, f"labels/{wrong}/5".encode()))
    arrived = label("a", 7, 1, headers=out.headers)
    assert told(await agent.process([arrived])) == [(LABELS, place("a"), 7, 0, "c", 1, 1)]
    stray = label("a", 8, 1, partition=wrong, headers=out.headers)
    assert await agent.process([stray]) == []


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Record(LABELS, 0, 1, STAMP, b"k", b'{"id":"a"}'), "label"),
        (Record(LABELS, 0, 1, STAMP, b"k", b'{"id":"a","label":1,"x":1}'), "x"),
        (Record(LABELS, 0, 1, STAMP, b"k", b'{"id":"a","label":65536}'), "label"),
        (Record(LABELS, 0, 1, STAMP, b"k", b'{"id":"a\\n","label":1}'), "id"),
        (Record(LABELS, 0, 1, STAMP, b"k", b'{"id":"a","label":1,"row":-1}'), "row"),
        (Record(LABELS, 0, 1, STAMP, b"k", None), "value"),
    ],
)
async def test_what_is_no_label_is_a_dead_letter(record: Record, field: str) -> None:
    """It names the field, and labels beside it are joined."""
    agent = await Logs().agent()
    await agent.process([score("a", 1)])
    outs = await agent.process([record, label("a", 2, 1)])
    assert [out.topic for out in outs] == ["dead-letters", "summaries"]
    letter = decode_dead_letter(outs[0].key, outs[0].value, outs[0].headers)
    assert (letter.error_class, letter.field) == ("SchemaError", field)


async def test_a_label_is_held_to_the_configured_size() -> None:
    """As all that users send."""
    large = Record(LABELS, 0, 1, STAMP, b"k", b'{"id":"a","label":1}'.ljust(2**20 + 1))
    (out,) = await (await Logs().agent()).process([large])
    letter = decode_dead_letter(out.key, out.value, out.headers)
    assert (letter.error_class, letter.field) == ("TooLarge", "value")


async def test_what_is_no_score_meets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A label that names it is said to have met none, and does not stop the others."""
    agent = await Logs().agent()
    bad = Record(SCORES, place("a"), 1, STAMP, b"a", b"{}")
    assert await agent.process([bad, label("a", 1, 1)]) == []
    assert f"scores/{place('a')}/1 is no score" in caplog.text


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest scores, the oldest waiting labels of any id, and scores of many bytes go."""
    size = len(score("a", 0).value or b"")
    monkeypatch.setattr(remembered, "MOST", 3)
    monkeypatch.setattr(remembered, "MOST_BYTES", 5 * size)
    found = remembered.Pairs()
    for name in "abcd":
        found.add_score(name, score(name, 0))
    assert found.add_label("a", 0, 1) is None
    assert found.add_label("b", 0, 1) is not None
    found.add_score("e", score("e", 0, prediction=(0,) * 60))
    assert found.add_label("c", 0, 1) is None
    assert found.add_label("d", 0, 1) is not None
    found.add_score("f", score("f", 0, prediction=(0,) * 5000))
    assert found.add_label("d", 0, 1) is None
    assert found.add_label("f", 4999, 1) is not None
    for name in "uvwx":
        found.add_label(name, 0, 1)
    assert found.waiting == 3
    found.add_label("y", 0, 1)
    found.add_label("y", 1, 1)
    assert found.waiting == 3
    for row in range(2, 6):
        found.add_label("y", row, 1)
    assert found.waiting == 3
    met = found.add_score("y", score("y", 0, prediction=(0,) * 6))
    assert [pair.row for pair in met] == [3, 4, 5]
    assert found.waiting == 0


@pytest.mark.parametrize("cut", range(9))
async def test_a_restart_goes_on_as_if_nothing_had_been(cut: int) -> None:
    """Whatever was committed before, the pairs told before and after are those of one life."""
    records = [
        score("a", 0), label("b", 0, 1), label("a", 1, 2), score("c", 1), label("d", 2, 3),
        Record(LABELS, 0, 3, STAMP, b"k", b"{"), score("d", 2), label("c", 4, 4), score("b", 3),
    ]  # fmt: skip
    offsets: dict[tuple[str, int], int] = {}
    records = [
        Record(r.topic, r.partition, offsets.setdefault((r.topic, r.partition), 0), r.timestamp,
               r.key, r.value, r.headers)
        for r in records
        if offsets.update({(r.topic, r.partition): offsets.get((r.topic, r.partition), -1) + 1})
        is None
    ]  # fmt: skip
    whole = await Logs().agent()
    expected = [out for r in records for out in await whole.process([r])]
    logs = Logs()
    first = await logs.agent()
    outs = [out for r in records[:cut] for out in await first.process([r])]
    logs.records = records
    logs.committed = {(r.topic, r.partition): r.offset + 1 for r in records[:cut]}
    second = await logs.agent()
    outs += [out for r in records[cut:] for out in await second.process([r])]
    assert outs == expected
    assert sum(out.topic == "summaries" for out in expected) == 4
    assert await second.tick(0.0) == ()


async def test_fewer_partitions_of_labels_than_of_scores_is_said() -> None:
    """Some labels could never meet their scores."""
    with pytest.raises(ConfigError, match="labels has 2 partitions and scores 4"):
        await Logs(labels=2).agent()


async def test_over_a_broker(settings: Settings) -> None:
    """A new holder remembers what lies before the committed offsets, and only that."""
    logs = await kafka.declare(settings, now=datetime.now(UTC))
    names = [f"id-{n}" for n in range(20)]
    async with kafka.publisher(settings) as publish:
        for n, name in enumerate(names):
            made = score(name, n)
            await publish(Out(SCORES, made.value, name.encode(), made.headers))
        await commit_start(settings, "join", (LABELS, SCORES))
        late = score("late", 99)
        await publish(Out(SCORES, late.value, b"late", late.headers))
    agent = JoinAgent(cast("Context", SimpleNamespace(settings=settings, logs=logs)))
    await agent.assigned(frozenset((t, n) for t in (LABELS, SCORES) for n in range(COUNT)))
    outs = await agent.process([label(name, n, 1) for n, name in enumerate(names)])
    assert sum(len(Summary.decode(out.value).unpack()) for out in outs) == 20
    assert await agent.process([label("late", 50, 1)]) == []
