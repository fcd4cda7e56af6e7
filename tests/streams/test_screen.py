"""The screen agent: samples in, verdicts and summaries out, the same however cut or killed."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec import transforms
from nnsec.adapters import kafka
from nnsec.adapters.declaration import config, declare
from nnsec.adapters.records import Out, Record
from nnsec.errors import DigestMismatch, TransientError
from nnsec.poisoning import ScreenSuite
from nnsec.settings import Input, Settings, parse
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.base import to_millis
from schemas.dead_letter import decode_dead_letter
from schemas.model_statement import ModelStatement
from schemas.outcome import Outcome, decode_outcome
from schemas.source import Source
from schemas.summary import Summary
from schemas.topics import TOPICS
from schemas.training import encode_sample
from streams import screen, screen_outs, screen_state
from streams.agent import Context
from streams.checkpoints import Checkpoints
from streams.control import Control
from streams.runtime import run
from streams.screen import ScreenAgent
from tests.conftest import MadeCheckpoint

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STAMP = to_millis(NOW)
LOGS = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in TOPICS}
SAMPLES = "training.samples"
JSON = (("content-type", b"application/json"),)
DIGITS = Input(shape=(1, 8, 8), range=(0, 16))


@pytest.fixture(scope="module")
def configured(checkpoint: MadeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return checkpoint.configure(parse({}), tmp_path_factory.mktemp("screen"))


@pytest.fixture(scope="module")
def context(configured: Settings, checkpoint: MadeCheckpoint) -> Context:
    checkpoints = Checkpoints(configured)
    control = Control(configured, uuid.UUID(int=1), checkpoints)
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
        reason="test", issued=NOW, expires=NOW + timedelta(hours=1),
    )  # fmt: skip
    value = sign_statement(statement, keys.load_private(checkpoint.release_key))
    control.apply(Record("models", 0, 0, STAMP, b"digits", value))
    assert asyncio.run(control.load_wanted())
    return Context(configured, LOGS, control, checkpoints, control.worker)


@pytest.fixture
def agent(context: Context) -> ScreenAgent:
    return ScreenAgent(context, Topic().read)


@pytest.fixture(scope="module")
def traffic(checkpoint: MadeCheckpoint) -> list[Record]:
    """Honest samples of three sources, and poison of a fourth: flipped and stamped ones."""
    rng = np.random.default_rng(3)
    records, offsets = [], [0, 0]
    for number in range(90):
        rows = rng.integers(0, 280, rng.integers(1, 4))
        x, y, source = checkpoint.x[rows], checkpoint.y[rows], f"s{number % 4}"
        if source == "s3":
            flipped = number % 3 == 0
            x = x if flipped else transforms.stamp_trigger(x, DIGITS)
            y = (y + 1) % 10 if flipped else np.full_like(y, 7)
        partition = number % 2
        offsets[partition] += 1 + number % 5 // 4  # logs have gaps
        records.append(record(x, y, offsets[partition], partition=partition, source=source))
    return records


class Topic:
    """What was written to ``state``, compacted."""

    def __init__(self, outs: Sequence[Out] = ()) -> None:
        self.values: dict[bytes, Out] = {}
        self.write(outs)

    def write(self, outs: Sequence[Out]) -> Sequence[Out]:
        for out in outs:
            if out.topic == "state" and out.key is not None:
                self.values[out.key] = out
        return outs

    async def read(self, topic: str) -> AsyncIterator[Record]:
        assert topic == "state"
        yield Record("state", 0, 0, STAMP, b"evidence/0", b"not ours")
        for number, out in enumerate(self.values.values()):
            yield Record("state", 0, number, STAMP, out.key, out.value)


def record(
    x: Any, y: Any, offset: int, *, partition: int = 0, source: str = "s0",
    encoding: Any = "binary", key: bytes | None = b"k", headers: Any = (),
) -> Record:  # fmt: skip
    value, own = encode_sample(
        model="digits", x=np.atleast_3d(x).reshape(-1, 1, 8, 8), y=np.atleast_1d(y),
        source=source, id=f"r{offset}", encoding=encoding,
    )  # fmt: skip
    return Record(SAMPLES, partition, offset, STAMP + offset, key, value, (*own, *headers))


def by_topic(outs: Iterable[Out], topic: str) -> list[Out]:
    return [out for out in outs if out.topic == topic]


def found(outs: Iterable[Out]) -> dict[tuple[int, int, int], Outcome]:
    """The outcome that each row is in; a row in two is an error."""
    rows: dict[tuple[int, int, int], Outcome] = {}
    outs = list(outs)
    for topic in ("training.accepted", "training.quarantine"):
        for out in by_topic(outs, topic):
            outcome = decode_outcome(out.value, out.headers)
            assert (outcome.verdict == "accepted") == (topic == "training.accepted")
            assert out.key == outcome.sample.source.encode()
            for row in outcome.rows:
                place = (outcome.partition, outcome.offset, row)
                assert place not in rows
                rows[place] = outcome
    return rows


def verdicts(outs: Sequence[Out]) -> dict[tuple[str, bytes], Out]:
    """Accepted and quarantined records by topic and event id."""
    return {
        (out.topic, dict(out.headers)["ce_id"] or b""): out
        for out in outs
        if out.topic.startswith("training.")
    }


def packed(outs: Sequence[Out]) -> bytes:
    rows = [Summary.decode(out.value).unpack() for out in by_topic(outs, "summaries")]
    names = [Summary.decode(out.value).subjects for out in by_topic(outs, "summaries")]
    whole = np.concatenate([part.copy() for part in rows])
    sources = [name[i] for name, part in zip(names, rows, strict=True) for i in part["subject"]]
    whole["subject"] = [int(source[1:]) for source in sources]
    whole.sort(order=("partition", "offset", "row"))
    return bytes(whole.tobytes())


def dumped(agent: ScreenAgent) -> dict[int, tuple[int, bytes]]:
    return {number: (state.offset, state.dump()) for number, state in agent._states.items()}


HELD = frozenset({(SAMPLES, 0), (SAMPLES, 1)})


async def test_every_sample_has_a_verdict_and_a_row(
    agent: ScreenAgent, traffic: list[Record], checkpoint: MadeCheckpoint
) -> None:
    """Position, source, label, reasons and figures are those of the sample; poison stands out."""
    outs = await agent.process(traffic)
    rows = found(outs)
    summaries = [Summary.decode(out.value) for out in by_topic(outs, "summaries")]
    (summary,) = summaries
    table = summary.unpack()
    assert len(table) == len(rows)
    assert summary.subjects == ("s0", "s1", "s2", "s3")
    assert summary.model_version == "1"
    held = {source: [0, 0] for source in summary.subjects}
    for one in table:
        outcome = rows[int(one["partition"]), int(one["offset"]), int(one["row"])]
        index = outcome.rows.index(int(one["row"]))
        assert outcome.sample.source == summary.subjects[one["subject"]]
        assert outcome.sample.labels[index] == one["label"]
        assert (outcome.verdict == "quarantined") == bool(one["quarantined"])
        named = {n for bit, n in enumerate(summary.reasons) if int(one["reasons"]) >> bit & 1}
        assert set(outcome.reasons[index]) == named
        if named:
            assert all(f.value > f.threshold for f in outcome.figures[index].values())
        assert named or not one["quarantined"]
        held[outcome.sample.source][int(one["quarantined"])] += 1
    assert held["s3"][1] > 0.9 * sum(held["s3"])
    assert all(held[name][1] <= 0.12 * sum(held[name]) for name in ("s0", "s1", "s2"))
    trigger = summary.notes["s3"]["trigger"]
    assert (trigger["label"], trigger["rows"], trigger["columns"]) == (7, [6, 8], [6, 8])


@pytest.mark.parametrize("cuts", [[1] * 90, [7, 60, 23], [89, 1]])
async def test_batches_cut_differently_lead_to_the_same(
    context: Context, traffic: list[Record], cuts: list[int]
) -> None:
    """Verdicts, figures, rows and state are bit-identical."""
    whole, pieces = (ScreenAgent(context, Topic().read) for _ in range(2))
    expected = await whole.process(traffic)
    outs: list[Out] = []
    start = 0
    for size in cuts:
        outs += await pieces.process(traffic[start : start + size])
        await pieces.tick(float(start))
        start += size
    assert verdicts(outs) == verdicts(expected)
    assert packed(outs) == packed(expected)
    assert dumped(pieces) == dumped(whole)


@pytest.mark.parametrize(("ticked", "killed"), [(0, 1), (0, 40), (30, 31), (30, 80), (88, 90)])
async def test_a_killed_screen_resumes_as_if_it_had_not_been(
    context: Context, traffic: list[Record], ticked: int, killed: int
) -> None:
    """Its successor begins where the snapshot ends, and what comes twice is equal."""
    topic = Topic()
    steady = ScreenAgent(context, Topic().read)
    expected = await steady.process(traffic)
    first = ScreenAgent(context, topic.read)
    assert await first.assigned(HELD) == {}
    outs = []
    for number, one in enumerate(traffic[:killed]):
        if number == ticked and number:
            topic.write(await first.tick(1.0))
        outs += topic.write(await first.process([one]))
    second = ScreenAgent(context, topic.read)
    starts = await second.assigned(HELD)
    rest = [
        one for one in traffic
        if one.offset >= starts.get((SAMPLES, one.partition), 0)
    ]  # fmt: skip
    if ticked:
        assert rest == traffic[ticked:]
    outs += await second.process(rest)
    assert verdicts(outs) == verdicts(expected)
    assert dumped(second) == dumped(steady)


async def test_the_first_snapshot_comes_with_the_first_records(
    context: Context, traffic: list[Record]
) -> None:
    """So that no commit ever lies past records that no snapshot leads to."""
    agent = ScreenAgent(context, Topic().read)
    outs = await agent.process(traffic[4:6])
    heads = {out.key: json.loads((out.value or b"").split(b"\n")[0]) for out in outs[:2]}
    assert {key: head["offset"] for key, head in heads.items()} == {
        b"screen/0": traffic[4].offset, b"screen/1": traffic[5].offset
    }  # fmt: skip
    again = await agent.process(traffic[4:6])
    assert [out.key for out in again[:2]] == [out.key for out in outs[:2]]
    assert by_topic(await agent.tick(0.0), "state")
    assert not by_topic(await agent.process(traffic[6:8]), "state")


async def test_snapshots_are_written_at_most_once_a_second(
    agent: ScreenAgent, traffic: list[Record]
) -> None:
    """And only of what has changed."""
    assert await agent.tick(9.0) == []
    await agent.process(traffic[:2])
    assert len(await agent.tick(10.0)) == 2
    await agent.process(traffic[2:3])
    assert await agent.tick(10.5) == []
    assert [out.key for out in await agent.tick(11.0)] == [
        f"screen/{traffic[2].partition}".encode()
    ]
    assert await agent.tick(20.0) == []


async def test_a_large_state_is_written_less_often(
    agent: ScreenAgent, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that snapshots do not become the most of what is written."""
    await agent.process(traffic[:2])
    size = max(len(out.value or b"") for out in await agent.tick(0.0))
    monkeypatch.setattr(screen, "SNAPSHOT_RATE", size / 10)
    await agent.process(traffic[2:4])
    assert await agent.tick(1.0)
    await agent.process(traffic[4:6])
    assert await agent.tick(10.0) == []
    assert len(await agent.tick(30.0)) == 2


async def test_what_fails_leaves_no_trace(
    context: Context, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that raises may come again, whole or split."""
    agent, steady = (ScreenAgent(context, Topic().read) for _ in range(2))
    for one in (agent, steady):
        await one.process(traffic[:30])
    before = dumped(agent)
    advance, calls = ScreenSuite.advance, []

    def broken(self: ScreenSuite, *args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 10:
            raise RuntimeError("boom")
        return advance(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ScreenSuite, "advance", broken)
        with pytest.raises(RuntimeError):
            await agent.process(traffic[30:60])
    assert dumped(agent) == before
    expected = await steady.process(traffic[30:60])
    assert verdicts(await agent.process(traffic[30:60])) == verdicts(expected)


async def test_a_batch_that_could_not_be_published_comes_again(
    context: Context, traffic: list[Record]
) -> None:
    """Whole or split, with the same outcome and the same state in the end."""
    agent, steady = (ScreenAgent(context, Topic().read) for _ in range(2))
    await agent.process(traffic[:30])
    await steady.process(traffic[:30])
    await agent.tick(0.0)
    expected = await steady.process(traffic[30:70])
    for _ in range(2):
        assert verdicts(await agent.process(traffic[30:70])) == verdicts(expected)
    halves = [*await agent.process(traffic[30:50]), *await agent.process(traffic[50:70])]
    assert verdicts(halves) == verdicts(expected)
    assert dumped(agent) == dumped(steady)


async def test_a_large_state_is_written_in_parts(
    context: Context, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head follows when the parts are there; until then the older snapshot holds."""
    topic = Topic()
    agent = ScreenAgent(context, topic.read)
    topic.write(await agent.process(traffic[:40]))
    topic.write(await agent.tick(0.0))
    monkeypatch.setattr(screen_state, "PART_BYTES", 500)
    topic.write(await agent.process(traffic[40:80]))
    parts = topic.write(await agent.tick(100.0))
    assert len(parts) > 8
    assert all(len(out.value or b"") <= 500 for out in parts)
    heir = ScreenAgent(context, topic.read)
    older = await heir.assigned(HELD)
    topic.write(await agent.process(traffic[80:]))
    topic.write(await agent.tick(100.1))  # the heads
    newer = await heir.assigned(HELD)
    assert all(newer[place] > older[place] for place in newer)
    rest = [one for one in traffic if one.offset >= newer[SAMPLES, one.partition]]
    assert len(rest) == 10
    await heir.process(rest)
    assert dumped(heir) == dumped(agent)
    topic.write(await agent.tick(200.0))
    assert len({key.split(b"/")[2] for key in topic.values if key.count(b"/") == 3}) == 2
    assert await heir.assigned(HELD) == newer


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value[:-1],
        lambda value: value[:-20] + bytes([value[-20] ^ 1]) + value[-19:],
        lambda value: b"[]" + value,
        lambda value: value.replace(b'"parts": 0', b'"parts": 2'),
        lambda value: value.replace(b'"offset": ', b'"offset": "x'),
        lambda _: b"",
    ],
)
async def test_a_damaged_snapshot_is_not_used(
    context: Context, traffic: list[Record], spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the sources of that partition alone begin anew."""
    topic = Topic()
    agent = ScreenAgent(context, topic.read)
    await agent.process(traffic)
    topic.write(await agent.tick(0.0))
    out = topic.values[b"screen/1"]
    topic.write([Out("state", spoil(out.value), out.key)])
    assert set(await agent.assigned(HELD)) == {(SAMPLES, 0)}
    assert "begin anew" in caplog.text
    assert set(agent._states) == {0}


async def test_a_snapshot_of_another_log_is_passed_over(
    context: Context, traffic: list[Record]
) -> None:
    """Offsets of a topic that was made anew mean something else."""
    topic = Topic()
    agent = ScreenAgent(context, topic.read)
    await agent.process(traffic)
    topic.write(await agent.tick(0.0))
    other = LOGS | {SAMPLES: uuid.UUID(int=7)}
    heir = ScreenAgent(
        Context(context.settings, other, context.control, context.checkpoints, context.worker),
        topic.read,
    )
    assert await heir.assigned(HELD) == {}
    assert await heir.assigned(frozenset()) == {}


async def test_a_source_under_quarantine_is_shut_out(
    context: Context, checkpoint: MadeCheckpoint
) -> None:
    """All of its samples, unseen; `anonymous` is nobody, and never shut out."""
    control = Control(context.settings, uuid.UUID(int=2), context.checkpoints)
    control._swaps = context.control._swaps
    for name in ("bad", "anonymous"):
        said = Source(
            source=name, state="quarantined", reason="r", incident="i", version=1, time=NOW
        )
        control.apply(Record("sources", 0, 0, STAMP, name.encode(), said.encode()))
    agent = ScreenAgent(
        Context(context.settings, LOGS, control, context.checkpoints, control.worker), Topic().read
    )
    outs = await agent.process(
        [
            record(checkpoint.x[:2], checkpoint.y[:2], 1, source="bad"),
            record(checkpoint.x[2], checkpoint.y[2], 2, source="good"),
            record(checkpoint.x[3], checkpoint.y[3], 3, source="anonymous"),
        ]
    )
    rows = found(outs)
    assert rows[0, 1, 0].reasons == (("source_quarantined",),) * 2
    assert [rows[0, offset, 0].verdict for offset in (1, 2, 3)] == [
        "quarantined", "accepted", "accepted",
    ]  # fmt: skip
    (summary,) = by_topic(outs, "summaries")
    assert Summary.decode(summary.value).subjects == ("good", "anonymous")
    assert ("digits", "bad") not in agent._states[0]
    outs = await agent.process([record(checkpoint.x[:2], checkpoint.y[:2], 4, source="bad")])
    assert not by_topic(outs, "summaries")


@pytest.mark.parametrize(
    ("labels", "changes", "error_class", "field"),
    [
        ([10], {}, "SchemaError", "inputs[1].data"),
        ([-1], {}, "SchemaError", "inputs[1].data"),
        ([1], {"value": None}, "SchemaError", "value"),
        ([1], {"value": b"{"}, "SchemaError", "value"),
        ([1], {"headers": JSON * 2}, "SchemaError", "content-type"),
    ],
)
async def test_an_invalid_record_is_a_dead_letter(
    agent: ScreenAgent, checkpoint: MadeCheckpoint, labels: list[int], changes: dict[str, Any],
    error_class: str, field: str,
) -> None:  # fmt: skip
    """It names class and field, and costs its neighbours nothing."""
    good = record(checkpoint.x[0], checkpoint.y[0], 1)
    bad = record(checkpoint.x[1], labels, 2, encoding="json")
    bad = Record(
        SAMPLES, 0, 2, STAMP, b"k", changes.get("value", bad.value), changes.get("headers", JSON)
    )
    outs = await agent.process([good, bad])
    assert [out.topic for out in outs] == [
        "state", "training.accepted", "dead-letters", "summaries",
    ]  # fmt: skip
    letter = decode_dead_letter(outs[2].key, outs[2].value, outs[2].headers)
    assert (letter.error_class, letter.field) == (error_class, field)
    assert (letter.topic, letter.offset, letter.log) == (SAMPLES, 2, LOGS[SAMPLES])
    assert agent._states[0].offset == 3


async def test_responses_are_skipped(agent: ScreenAgent) -> None:
    """They are no samples; their place is passed."""
    answer = Record(
        SAMPLES, 0, 4, STAMP, b"k", b'{"outputs":[]}', (*JSON, ("ce_type", b"a.inference.response"))
    )
    assert [out.topic for out in await agent.process([answer])] == ["state"]
    assert agent._states[0].offset == 5


async def test_samples_wait_for_a_checkpoint(context: Context, checkpoint: MadeCheckpoint) -> None:
    """Nothing is decided without one, and state stays as it was."""
    control = Control(context.settings, uuid.UUID(int=2), context.checkpoints)
    agent = ScreenAgent(
        Context(context.settings, LOGS, control, context.checkpoints, control.worker), Topic().read
    )
    with pytest.raises(TransientError, match=r"model 'digits' has no valid statement"):
        await agent.process([record(checkpoint.x[0], 1, 1)])
    assert dumped(agent) == {}


async def test_partitions_held_are_reported(agent: ScreenAgent, context: Context) -> None:
    """With the version of the source statements that has been heard."""
    await agent.assigned(HELD)
    await agent.tick(0.0)
    assert dict(context.control.status(NOW).partitions)[SAMPLES] == (0, 1)


async def test_an_outcome_that_may_not_fit_is_a_dead_letter(
    context: Context, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of many tiny samples grows; where only the figures are too much, they go."""
    limit = int(config(context.settings, TOPICS["training.accepted"])["max.message.bytes"])
    assert limit == 1_048_588 + 256 * 1024
    agent = ScreenAgent(context, Topic().read)
    x, y = np.repeat(checkpoint.x[:1], 20, 0), np.repeat(checkpoint.y[:1], 20)
    agent._limit = screen_outs.PER_RECORD + 20 * (64 + screen_outs.PER_ROW) - 1
    (_, out) = await agent.process([record(x, y, 1)])
    assert decode_dead_letter(out.key, out.value, out.headers).error_class == "TooLarge"
    agent._limit = limit
    (out,) = by_topic(await agent.process([record(x, y, 2)]), "training.quarantine")
    held = decode_outcome(out.value, out.headers)
    assert held.reasons == (("duplicate",),) * 19
    assert held.figures[18]["duplicate"].value == 19
    monkeypatch.setattr(screen_outs, "PER_RECORD", 0)
    headers = sum(len(name) + len(text or b"") for name, text in out.headers)
    agent._limit = len(out.value or b"") + headers - 1
    (out,) = by_topic(await agent.process([record(x, y, 2)]), "training.quarantine")
    held = decode_outcome(out.value, out.headers)
    assert (held.reasons, held.figures) == ((("duplicate",),) * 19, ())


def test_the_least_recently_used_source_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number is kept, the same however batches are cut; snapshots keep the order."""
    state = screen_state.Windows(0, capacity=2)
    for name in ("a", "b", "a", "c"):
        state.open(("m", name), 4)
    assert [("m", name) in state for name in "abc"] == [True, False, True]
    again = screen_state.Windows.load(0, state.dump(), capacity=2)
    for one in (state, again):
        one.open(("m", "d"), 4)
        assert [("m", name) in one for name in "acd"] == [False, True, True]


@pytest.mark.parametrize("spoiled", [b"", b"[[1]]\n", b"[1]\n", b'[["m", "s", "x"]]\n', b"7\n"])
def test_what_lists_no_windows_is_refused(spoiled: bytes) -> None:
    """With an error of ours, whatever it is."""
    with pytest.raises(DigestMismatch, match="no list of windows"):
        screen_state.Windows.load(0, spoiled)


def test_a_window_of_other_inputs_begins_anew() -> None:
    """A model whose input shape was changed in the configuration has other places."""
    state = screen_state.Windows(0)
    window = state.open(("m", "a"), 4)
    assert state.open(("m", "a"), 4) is window
    assert state.open(("m", "a"), 5).places == 5


async def test_large_batches_are_told_in_several_summaries(
    agent: ScreenAgent, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with an id of its own."""
    monkeypatch.setattr(screen_outs, "SUMMARY_ROWS", 50)
    outs = by_topic(await agent.process(traffic), "summaries")
    assert len(outs) > 2
    assert len({dict(out.headers)["ce_id"] for out in outs}) == len(outs)
    rows = sum(len(Summary.decode(out.value).unpack()) for out in outs)
    assert rows == len(found(await ScreenAgent(agent._context, Topic().read).process(traffic)))


async def test_on_a_broker_a_restarted_screen_goes_on_as_if_it_had_not_stopped(
    settings: Settings, checkpoint: MadeCheckpoint, traffic: list[Record], context: Context,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two runs, one after the other, accept and quarantine what one run would have."""
    monkeypatch.chdir(tmp_path)
    mine = checkpoint.configure(settings, tmp_path)
    mine = parse(
        mine.model_dump()
        | {"kafka": mine.kafka.model_dump() | {"start_at": "earliest", "session_timeout": 2.0}}
    )
    logs = await declare(mine, now=NOW)
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
        reason="test", issued=datetime.now(UTC), expires=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    signed = sign_statement(statement, keys.load_private(checkpoint.release_key))
    outs: list[Out] = []
    async with kafka.publisher(mine) as publish:
        await publish(Out("models", signed, b"digits"))
        for part in (traffic[:50], traffic[50:]):
            await publish(
                *(Out(SAMPLES, r.value, r.key, r.headers, partition=r.partition) for r in part)
            )
            outs = await _run_until(mine, traffic[: traffic.index(part[-1]) + 1])
    steady = ScreenAgent(
        Context(mine, logs, context.control, context.checkpoints, context.worker), Topic().read
    )
    sent = [record async for record in kafka.read_to_end(mine, (SAMPLES,))]
    assert verdicts(outs) == verdicts(await steady.process(sent))


async def _run_until(settings: Settings, sent: Sequence[Record]) -> list[Out]:
    """Run the screen until all that was sent has a verdict, and stop it; what it wrote."""
    stop = asyncio.Event()
    running = asyncio.create_task(run(settings, ["screen"], stop=stop))
    wanted = sum(_rows(record) for record in sent)
    outs: list[Out] = []
    tail = kafka.Tail(settings, ("training.accepted", "training.quarantine"))
    await tail.start()
    async for record in tail:
        outs.append(Out(record.topic, record.value, record.key, record.headers))
        if len(found(verdicts(outs).values())) == wanted:
            break
    await tail.stop()
    stop.set()
    assert await running == 0
    return outs


def _rows(record: Record) -> int:
    length = int(dict(record.headers)["inference-header-content-length"] or 0)
    shape: list[int] = json.loads((record.value or b"")[:length])["inputs"][1]["shape"]
    return shape[0]
