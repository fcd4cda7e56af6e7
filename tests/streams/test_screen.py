"""The screen agent: samples in, verdicts and summaries out, the same however cut."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from nnsec.adapters.declaration import config
from nnsec.adapters.records import Out, Record
from nnsec.bets import Levels
from nnsec.drift import Reference
from nnsec.errors import TransientError
from nnsec.poisoning import ScreenSuite
from nnsec.settings import Budget
from nnsec.watch import Watch
from schemas.base import to_millis
from schemas.dead_letter import decode_dead_letter
from schemas.outcome import decode_outcome
from schemas.source import Source
from schemas.summary import Summary
from schemas.topics import TOPICS
from streams import screen_outs
from streams.agent import Context
from streams.control import Control
from streams.screen import ScreenAgent
from tests.conftest import MadeCheckpoint
from tests.streams.screening import (
    HELD,
    LOGS,
    NOW,
    SAMPLES,
    STAMP,
    Topic,
    by_topic,
    dumped,
    found,
    packed,
    record,
    verdicts,
)

JSON = (("content-type", b"application/json"),)


async def test_a_timestamp_of_the_future_moves_no_time(
    agent: ScreenAgent, checkpoint: MadeCheckpoint
) -> None:
    """A summary is at most 5 s ahead of the clock."""
    later = to_millis(datetime.now(UTC) + timedelta(days=400))
    ahead = replace(record(checkpoint.x[0], checkpoint.y[0], 0), timestamp=later)
    (out,) = by_topic(await agent.process([ahead]), "summaries")
    assert Summary.decode(out.value).time <= datetime.now(UTC) + timedelta(seconds=5)


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


async def test_true_labels_sent_first_excuse_no_wrong_ones(
    agent: ScreenAgent, checkpoint: MadeCheckpoint
) -> None:
    """The same input under another label counts; under the same one it is a repeat."""
    x, y = checkpoint.x[:60], checkpoint.y[:60]
    watch, levels = Watch("digits", Budget()), Levels.certified(400)
    reference = Reference((levels,), levels, 0.01, 10, 400, (0.1,) * 10)
    alerts = []
    for offset, labels in enumerate((y, (y + 1) % 10, y)):
        (out,) = by_topic(await agent.process([record(x, labels, offset)]), "summaries")
        alerts.append(watch.apply(Summary.decode(out.value), reference))
        assert watch.sources.repeated == (60 if offset == 2 else 0)
    assert [len(sent) for sent in alerts] == [0, 1, 0]
    assert alerts[1][0].subject.id == "s0"


@pytest.mark.parametrize("cuts", [[1] * 90, [7, 60, 23], [89, 1]])
async def test_batches_cut_differently_lead_to_the_same(
    context: Context, traffic: list[Record], cuts: list[int]
) -> None:
    """Verdicts, figures, rows and state are bit-identical."""
    whole, pieces = (Topic().agent(context) for _ in range(2))
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


async def test_what_fails_leaves_no_trace(
    context: Context, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that raises may come again, whole or split."""
    agent, steady = (Topic().agent(context) for _ in range(2))
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
    agent, steady = (Topic().agent(context) for _ in range(2))
    await agent.process(traffic[:30])
    await steady.process(traffic[:30])
    await agent.tick(0.0)
    expected = await steady.process(traffic[30:70])
    for _ in range(2):
        assert verdicts(await agent.process(traffic[30:70])) == verdicts(expected)
    halves = [*await agent.process(traffic[30:50]), *await agent.process(traffic[50:70])]
    assert verdicts(halves) == verdicts(expected)
    assert dumped(agent) == dumped(steady)


async def test_a_source_under_quarantine_is_shut_out(
    context: Context, checkpoint: MadeCheckpoint
) -> None:
    """All of its samples, and none is evidence; `anonymous` is nobody, and never shut out."""
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
    assert agent._memory.states[0].offset == 3


async def test_responses_are_skipped(agent: ScreenAgent) -> None:
    """They are no samples; their place is passed."""
    answer = Record(
        SAMPLES, 0, 4, STAMP, b"k", b'{"outputs":[]}', (*JSON, ("ce_type", b"a.inference.response"))
    )
    assert [out.topic for out in await agent.process([answer])] == ["state"]
    assert agent._memory.states[0].offset == 5


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
    agent = Topic().agent(context)
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


async def test_large_batches_are_told_in_several_summaries(
    agent: ScreenAgent, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with an id of its own."""
    monkeypatch.setattr(screen_outs, "SUMMARY_ROWS", 50)
    outs = by_topic(await agent.process(traffic), "summaries")
    assert len(outs) > 2
    assert len({dict(out.headers)["ce_id"] for out in outs}) == len(outs)
    rows = sum(len(Summary.decode(out.value).unpack()) for out in outs)
    assert rows == len(found(await Topic().agent(agent._context).process(traffic)))
