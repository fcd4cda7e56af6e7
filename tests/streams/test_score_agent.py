"""The score agent: records in, scores, dead letters and summaries out, the same however cut."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec.adapters.records import Out, Record
from nnsec.errors import TransientError
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.base import to_millis
from schemas.dead_letter import decode_dead_letter
from schemas.inference import encode_request
from schemas.model_statement import ModelStatement
from schemas.score import decode_score
from schemas.summary import Summary
from schemas.topics import TOPICS
from streams import score as module
from streams.agent import Context
from streams.checkpoints import Checkpoints
from streams.control import Control
from streams.score import ScoreAgent
from tests.conftest import MadeCheckpoint

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STAMP = to_millis(NOW)
LOGS = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in TOPICS}
JSON = (("content-type", b"application/json"),)


@pytest.fixture(scope="module")
def configured(checkpoint: MadeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return checkpoint.configure(parse({}), tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def context(configured: Settings) -> Context:
    checkpoints = Checkpoints(configured)
    control = Control(configured, uuid.UUID(int=1), checkpoints)
    return Context(configured, LOGS, control, checkpoints, control.worker)


@pytest.fixture(scope="module")
def agent(context: Context, checkpoint: MadeCheckpoint) -> ScoreAgent:
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
        reason="test", issued=NOW, expires=NOW + timedelta(hours=1),
    )  # fmt: skip
    value = sign_statement(statement, keys.load_private(checkpoint.release_key))
    context.control.apply(Record("models", 0, 0, STAMP, b"digits", value))
    assert asyncio.run(context.control.load_wanted())
    return ScoreAgent(context)


def record(
    x: Any, offset: int, *, partition: int = 0, encoding: Any = "json", client: str | None = "c",
    key: bytes | None = None, headers: Any = (),
) -> Record:  # fmt: skip
    value, own = encode_request(
        model="digits", x=np.atleast_3d(x).reshape(-1, 1, 8, 8), id=f"r{offset}", client=client,
        encoding=encoding,
    )  # fmt: skip
    return Record(
        "inference.inputs", partition, offset, STAMP + offset, key, value, (*own, *headers)
    )


async def test_a_timestamp_of_the_future_moves_no_time(
    agent: ScoreAgent, checkpoint: MadeCheckpoint
) -> None:
    """A summary is at most 5 s ahead of the clock; an event's own time is still its record's."""
    later = datetime.now(UTC) + timedelta(days=400)
    ahead = replace(record(checkpoint.x[0], 0), timestamp=to_millis(later))
    (out,) = by_topic(await agent.process([ahead]), "summaries")
    assert Summary.decode(out.value).time <= datetime.now(UTC) + timedelta(seconds=5)
    assert (dict(out.headers)["ce_time"] or b"")[:10].decode() == str(later.date())


def raw(value: bytes | None, offset: int, headers: Any = JSON) -> Record:
    return Record("inference.inputs", 0, offset, STAMP, b"k", value, headers)


def by_topic(outs: Sequence[Out], topic: str) -> list[Out]:
    return [out for out in outs if out.topic == topic]


async def test_every_input_has_a_score_and_a_row(
    agent: ScoreAgent, checkpoint: MadeCheckpoint
) -> None:
    """Id, key, position, client, version and prediction are those of the input and the model."""
    records = [record(checkpoint.x[i], i, partition=i % 2, client=f"c{i % 3}") for i in range(20)]
    outs = await agent.process(records)
    scores = [decode_score(out.value, out.headers) for out in by_topic(outs, "scores")]
    assert [(s.id, s.partition, s.offset, s.client) for s in scores] == [
        (f"r{i}", i % 2, i, f"c{i % 3}") for i in range(20)
    ]
    assert {(s.model, s.version, s.log, s.topic) for s in scores} == {
        ("digits", 1, LOGS["inference.inputs"], "inference.inputs")
    }
    assert [out.key for out in by_topic(outs, "scores")] == [s.id.encode() for s in scores]
    hits = sum(int(s.prediction[0]) == checkpoint.y[i] for i, s in enumerate(scores))
    assert hits >= 17
    (summary,) = (Summary.decode(out.value) for out in by_topic(outs, "summaries"))
    rows = summary.unpack()
    assert summary.time == datetime(2026, 1, 2, 0, 0, 0, 19_000, tzinfo=UTC)
    assert rows["offset"].tolist() == list(range(20))
    assert [summary.subjects[i] for i in rows["subject"]] == [s.client for s in scores]
    assert rows["prediction"].tolist() == [int(s.prediction[0]) for s in scores]
    assert rows["p_value"].tolist() == [float(s.p_value[0]) for s in scores]
    assert len(set(rows["fingerprint"].tolist())) == 20


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [3, 30, 7], [32, 8]])
async def test_a_replay_cut_differently_is_bit_identical(
    agent: ScoreAgent, checkpoint: MadeCheckpoint, cuts: list[int]
) -> None:
    """Values, headers and keys of the scores, and the rows of the summaries."""
    records = [
        record(checkpoint.x[3 * i : 3 * i + 1 + i % 3], i, encoding=("json", "binary")[i % 2])
        for i in range(40)
    ]
    expected = await agent.process(records)
    outs: list[Out] = []
    start = 0
    for size in cuts:
        outs += await agent.process(records[start : start + size])
        start += size
    assert by_topic(outs, "scores") == by_topic(expected, "scores")
    packed = [
        b"".join(
            base64.b64decode(Summary.decode(o.value).rows) for o in by_topic(some, "summaries")
        )
        for some in (outs, expected)
    ]
    assert packed[0] == packed[1]


async def test_large_batches_are_cut_and_give_the_same(
    agent: ScoreAgent, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the rows of a forward pass nor those of a summary change a figure."""
    records = [record(checkpoint.x[50 * i : 50 * i + 50], i) for i in range(4)]
    expected = await agent.process(records)
    monkeypatch.setattr(module, "FORWARD_ROWS", 64)
    monkeypatch.setattr(module, "SUMMARY_ROWS", 60)
    outs = await agent.process(records)
    assert by_topic(outs, "scores") == by_topic(expected, "scores")
    parts = [Summary.decode(out.value) for out in by_topic(outs, "summaries")]
    assert [len(part.unpack()) for part in parts] == [60, 60, 60, 20]
    ids = {dict(out.headers)["ce_id"] for out in by_topic(outs, "summaries")}
    assert len(ids) == 4
    whole = Summary.decode(by_topic(expected, "summaries")[0].value).unpack()
    assert b"".join(p.unpack().tobytes() for p in parts) == whole.tobytes()


async def test_each_encoding_is_answered_in_kind(
    agent: ScoreAgent, checkpoint: MadeCheckpoint
) -> None:
    """JSON and structured events in JSON, binary in binary, all with the same figures."""
    x = checkpoint.x[0]
    plain, binary = record(x, 1), record(x, 1, encoding="binary")
    envelope = {
        "specversion": "1.0", "id": "e", "source": "/s", "type": "t.inference.request",
        "data": json.loads(plain.value or b""),
    }  # fmt: skip
    structured = raw(
        json.dumps(envelope).encode(), 1, (("content-type", b"application/cloudevents+json"),)
    )
    scores = []
    for sent, media in (
        (plain, b"application/json"), (binary, b"application/octet-stream"),
        (structured, b"application/json"),
    ):  # fmt: skip
        (out, _) = await agent.process([sent])
        headers = dict(out.headers)
        assert headers["content-type"] == media
        assert ("inference-header-content-length" in headers) == (sent is binary)
        assert headers["ce_type"] == b"nnsec.score.v1"
        assert headers["ce_source"] == b"/nnsec/score"
        scores.append(decode_score(out.value, out.headers))
    assert {score.id for score in scores} == {"r1"}
    for score in scores[1:]:
        for name in ("prediction", "confidence", "p_value", "p_values", "coverage"):
            assert getattr(score, name).tobytes() == getattr(scores[0], name).tobytes()


async def test_the_event_id_follows_from_the_position(
    agent: ScoreAgent, checkpoint: MadeCheckpoint
) -> None:
    """UUIDv5 of the log and the place, and the time is the input's."""
    (out, _) = await agent.process([record(checkpoint.x[0], 5, partition=3)])
    headers = dict(out.headers)
    name = "inference.inputs/3/5/score"
    assert headers["ce_id"].decode() == str(uuid.uuid5(LOGS["inference.inputs"], name))
    assert headers["ce_time"] == b"2026-01-02T00:00:00.005Z"


async def test_trace_headers_go_on_to_score_and_dead_letter(
    agent: ScoreAgent, checkpoint: MadeCheckpoint
) -> None:
    """Unchanged in both."""
    trace = (("traceparent", b"00-aa-bb-01"), ("tracestate", b"v=1"))
    outs = await agent.process(
        [record(checkpoint.x[0], 1, headers=trace), raw(b"{", 2, (*JSON, *trace))]
    )
    for topic in ("scores", "dead-letters"):
        (out,) = by_topic(outs, topic)
        assert {h: v for h, v in out.headers if h.startswith("trace")} == dict(trace)


GOOD = {
    "id": "a", "model_name": "digits",
    "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [0] * 64}],
}  # fmt: skip


def changed(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def tensor(**changes: Any) -> bytes:
    return json.dumps(GOOD | {"inputs": [GOOD["inputs"][0] | changes]}).encode()  # type: ignore[operator,index]


@pytest.mark.parametrize(
    ("value", "headers", "error_class", "field"),
    [
        (None, JSON, "SchemaError", "value"),
        (b"\x00\xff", JSON, "SchemaError", "value"),
        (b"{}" + b" " * 1_048_577, JSON, "TooLarge", "value"),
        (b"[" * 100, JSON, "TooLarge", "value"),
        (changed(model_name="none"), JSON, "UnknownModel", "model_name"),
        (changed(extra=1), JSON, "SchemaError", "extra"),
        (changed(id=""), JSON, "SchemaError", "id"),
        (tensor(shape=[1, 64]), JSON, "SchemaError", "inputs[0].shape"),
        (tensor(datatype="FP32"), JSON, "SchemaError", "inputs[0].datatype"),
        (tensor(data=[17] + [0] * 63), JSON, "SchemaError", "inputs[0].data"),
        (changed(), (("content-type", b"text/csv"),), "SchemaError", "content-type"),
        (changed(), (("ce_type", b"x.inference.response"),), "SchemaError", "ce_type"),
        (changed(), (("ce_time", b"noon"),), "SchemaError", "ce_time"),
        (changed(), JSON * 2, "SchemaError", "content-type"),
        (changed(), (("h", b""),) * 129, "TooLarge", "headers"),
    ],
)  # fmt: skip
async def test_an_invalid_record_is_a_dead_letter_between_scored_neighbours(
    agent: ScoreAgent, checkpoint: MadeCheckpoint,
    value: bytes | None, headers: Any, error_class: str, field: str,
) -> None:  # fmt: skip
    """It names class, field and place, keeps its bytes, and costs its neighbours nothing."""
    neighbours = [record(checkpoint.x[0], 1), record(checkpoint.x[1], 3)]
    outs = await agent.process([neighbours[0], raw(value, 2, headers), neighbours[1]])
    assert [out.topic for out in outs] == ["scores", "dead-letters", "scores", "summaries"]
    letter = decode_dead_letter(outs[1].key, outs[1].value, outs[1].headers)
    assert (letter.error_class, letter.field, letter.attempts) == (error_class, field, 1)
    assert (letter.topic, letter.partition, letter.offset) == ("inference.inputs", 0, 2)
    assert (letter.key, letter.value, letter.headers) == (b"k", value, headers)
    assert letter.log == LOGS["inference.inputs"]


async def test_what_has_no_room_among_the_scores_is_not_scored(
    agent: ScoreAgent, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead letter between its neighbours; what passes fits, and a model may have none that do."""
    seen: list[int] = []
    score = agent._context.checkpoints.score

    def counted(model: str, version: int, digest: str, x: Any) -> Any:
        seen.append(len(x))
        return score(model, version, digest, x)

    monkeypatch.setattr(agent._context.checkpoints, "score", counted)
    monkeypatch.setattr(agent, "_limit", 20_000)
    large = record(np.tile(checkpoint.x, (2, 1, 1, 1))[:400], 2, encoding="binary")
    small = [record(checkpoint.x[0], 1), record(checkpoint.x[:200], 3, encoding="binary")]
    outs = await agent.process([small[0], large, small[1]])
    assert [out.topic for out in outs] == ["scores", "dead-letters", "scores", "summaries"]
    letter = decode_dead_letter(outs[1].key, outs[1].value, outs[1].headers)
    assert (letter.error_class, letter.field) == ("TooLarge", "inputs[0].shape")
    assert seen == [201]
    assert [out.topic for out in await agent.process([large])] == ["dead-letters"]
    assert seen == [201]


async def test_responses_are_skipped_and_counted(agent: ScoreAgent) -> None:
    """They are no inputs and leave nothing but a count."""
    counter = module.SKIPPED.labels("inference.inputs")
    before = counter._value.get()
    answer = raw(b'{"outputs":[]}', 1, (*JSON, ("ce_type", b"a.inference.response")))
    assert await agent.process([answer]) == []
    assert counter._value.get() == before + 1


async def test_who_sent_it_follows_the_order_of_the_contract(
    agent: ScoreAgent, checkpoint: MadeCheckpoint
) -> None:
    """Body, then header, then key, else anonymous."""
    header = (("ce_nnsecclient", b"h"),)
    x = checkpoint.x[0]
    outs = await agent.process(
        [
            record(x, 1, client="b", key=b"k", headers=header),
            record(x, 2, client=None, key=b"k", headers=header),
            record(x, 3, client=None, key=b"k"),
            record(x, 4, client=None),
        ]
    )
    scores = [decode_score(out.value, out.headers) for out in by_topic(outs, "scores")]
    assert [score.client for score in scores] == ["b", "h", "k", "anonymous"]


async def test_a_model_that_waits_makes_its_inputs_wait(
    context: Context, checkpoint: MadeCheckpoint
) -> None:
    """Nothing is decided without a checkpoint; the error says which model, and what to do."""
    control = Control(context.settings, uuid.UUID(int=2), context.checkpoints)
    waiting = ScoreAgent(
        Context(context.settings, LOGS, control, context.checkpoints, control.worker)
    )
    with pytest.raises(TransientError, match=r"model 'digits' has no valid statement.*--release"):
        await waiting.process([record(checkpoint.x[0], 1)])
    assert [out.topic for out in await waiting.process([raw(b"{", 1)])] == ["dead-letters"]


async def test_what_is_held_is_reported(agent: ScoreAgent, context: Context) -> None:
    """Partitions of the inputs, and that no older batch is in hand."""
    await agent.assigned(frozenset({("inference.inputs", 2), ("inference.inputs", 0)}))
    assert await agent.tick(0.0) == ()
    status = context.control.status(NOW)
    assert status.partitions == {"inference.inputs": (0, 2)}
    assert [(one.version, one.state) for one in status.models] == [(1, "active")]


def test_the_decoder_knows_each_model(configured: Settings, tmp_path: Path) -> None:
    """Shape, type, range and the tensor's name come from the configuration."""
    expected = module.expected_models(configured)["digits"]
    assert (expected.shape, expected.dtype, expected.low, expected.high, expected.name) == (
        (1, 8, 8), "uint8", 0.0, 16.0, "input",
    )  # fmt: skip


async def test_what_the_first_stage_hides_is_counted(
    agent: ScoreAgent, context: Context, checkpoint: MadeCheckpoint
) -> None:
    """Clear inputs that were drawn are counted, and those of them that are flagged."""
    suite = context.checkpoints.get("digits", 1, checkpoint.digest).suite
    scored = suite.score(checkpoint.x)
    drawn = np.flatnonzero(scored.audited)
    assert len(drawn)
    rows = np.concatenate([drawn, np.flatnonzero(~scored.audited)[:20]])
    counters = [module.AUDITED.labels("digits"), module.HIDDEN.labels("digits")]
    before = [counter._value.get() for counter in counters]
    await agent.process([record(checkpoint.x[row], place) for place, row in enumerate(rows, 1)])
    hidden = int((scored.audited & scored.flag).sum())
    after = [counter._value.get() for counter in counters]
    assert [b - a for a, b in zip(before, after, strict=True)] == [len(drawn), hidden]
