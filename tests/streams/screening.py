"""What tests of the screen share: records, what comes out, and a `state` in memory."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from nnsec.adapters.positions import Bounds
from nnsec.adapters.records import Out, Record
from schemas.base import to_millis
from schemas.outcome import Outcome, decode_outcome
from schemas.summary import Summary
from schemas.topics import TOPICS
from schemas.training import encode_sample
from streams.agent import Context
from streams.screen import ScreenAgent

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STAMP = to_millis(NOW)
LOGS = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in TOPICS}
SAMPLES = "training.samples"
HELD = frozenset({(SAMPLES, 0), (SAMPLES, 1)})


class Topic:
    """What was written to ``state``, compacted, and what the group committed, by partition."""

    def __init__(self) -> None:
        self.values: dict[bytes, Out] = {}
        self.committed: dict[int, int] = {}

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

    async def bounds(self) -> Mapping[tuple[str, int], Bounds]:
        return {place: Bounds(0, 1 << 30, self.committed.get(place[1])) for place in HELD}

    def agent(self, context: Context) -> ScreenAgent:
        return ScreenAgent(context, self.read, self.bounds)


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
    return {number: (state.offset, state.dump()) for number, state in agent._memory.states.items()}
