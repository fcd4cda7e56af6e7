"""Scoring: a score and a summary for every input, by nothing but the input and the checkpoint."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
from prometheus_client import Counter

from nnsec.adapters.declaration import BROKER_MAX_MESSAGE
from nnsec.adapters.records import Out, Record
from nnsec.errors import SchemaError, TransientError
from nnsec.settings import Settings
from nnsec.suite import Scored
from schemas.base import from_millis
from schemas.headers import event_headers
from schemas.inference import Expected, Request, Skipped, decode_request
from schemas.score import encode_score
from schemas.score_size import check_score_fits
from schemas.summary import Summary
from streams.agent import Context
from streams.poison import dead_letter
from streams.rows import join, pack, split, verdicts
from streams.swap import Active
from streams.times import stream_time

INPUTS = "inference.inputs"
SUMMARY_ROWS = 8192
"""Rows in one summary at most: 44 bytes each in base64 must fit a record."""
FORWARD_ROWS = 16_384
"""Rows scored at once at most, which bounds memory; the figures do not depend on it."""

SKIPPED = Counter("nnsec_skipped", "Responses among the inputs, which are not inputs", ["topic"])
SCORED = Counter("nnsec_scored_rows", "Rows scored", ["model"])
AUDITED = Counter(
    "nnsec_audited_rows", "Clear inputs that went through all detectors all the same", ["model"]
)
HIDDEN = Counter(
    "nnsec_hidden_rows", "Audited inputs that were flagged: what the first stage hides", ["model"]
)


@dataclass(frozen=True, slots=True)
class Item:
    """One valid input: its record, and its rows as an array."""

    index: int
    record: Record
    request: Request


class ScoreAgent:
    """Scores `inference.inputs`; its only state is the checkpoint that serves.

    Parameters
    ----------
    context:
        What the process shares between roles.
    """

    role = "score"
    topics = (INPUTS,)
    overlaps = True
    at_once = 2

    def __init__(self, context: Context) -> None:
        self._context = context
        self._expected = expected_models(context.settings)
        self._limit = context.settings.kafka.max_message_bytes or BROKER_MAX_MESSAGE
        context.control.settle(self.role)

    async def assigned(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Report the partitions held."""
        held = [number for topic, number in partitions if topic == INPUTS]
        self._context.control.hold(INPUTS, held)

    def settle(self) -> None:
        """Say that all batches that began earlier are published."""
        self._context.control.settle(self.role)

    async def tick(self, now: float) -> Sequence[Out]:  # noqa: ARG002 - the interface of agents
        """Let a swap be reported although no inputs come."""
        self.settle()
        return ()

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Score one micro-batch with one forward pass a model.

        Returns
        -------
        Sequence[Out]
            For each record a score or a dead letter, in the order of the records; then the
            summaries, one per model (more only for thousands of rows).

        Raises
        ------
        TransientError
            If a model takes no inputs yet; it names the model and says what is missing.
        """
        outs: list[Out | None] = [None] * len(records)
        groups: dict[str, list[Item]] = {}
        skipped = 0
        for index, record in enumerate(records):
            found = self._decode(record)
            if isinstance(found, Request):
                groups.setdefault(found.model, []).append(Item(index, record, found))
            elif isinstance(found, Out):
                outs[index] = found
            else:
                skipped += 1
        serving = {model: self._serving(model) for model in groups}
        summaries: list[Out] = []
        for model, decoded in groups.items():
            active, names = serving[model]
            items = self._fitting(decoded, names, outs)
            if not items:
                continue
            scored = await self._score(model, active, items)
            sizes = [len(item.request.x) for item in items]
            for item, part in zip(items, split(scored, sizes), strict=True):
                outs[item.index] = self._out(item, part, active.version, names)
            summaries.extend(self._summaries(model, active.version, items, scored))
            SCORED.labels(model).inc(len(scored.prediction))
            AUDITED.labels(model).inc(int(scored.audited.sum()))
            HIDDEN.labels(model).inc(int((scored.audited & scored.flag).sum()))
        SKIPPED.labels(INPUTS).inc(skipped)  # last: what is tried again is counted once
        return [out for out in outs if out is not None] + summaries

    def _decode(self, record: Record) -> Request | Out | None:
        kafka = self._context.settings.kafka
        try:
            found = decode_request(
                record.key, record.value, record.headers,
                partition=record.partition, offset=record.offset, models=self._expected,
                limits=self._context.settings.limits, default_model=kafka.default_model,
                identity_header=kafka.identity_header,
            )  # fmt: skip
        except SchemaError as error:
            return self._refused(record, error)
        if isinstance(found, Skipped):
            return None
        return found

    def _fitting(
        self, items: Sequence[Item], names: Sequence[str], outs: list[Out | None]
    ) -> list[Item]:
        """The items whose scores fit their topic; the others are dead letters, unscored."""
        fitting = []
        for item in items:
            try:
                check_score_fits(item.request, names, self._limit)
            except SchemaError as error:
                outs[item.index] = self._refused(item.record, error)
            else:
                fitting.append(item)
        return fitting

    def _refused(self, record: Record, error: SchemaError) -> Out:
        return dead_letter(self._context.settings, self._context.logs, record, error, attempts=1)

    def _serving(self, model: str) -> tuple[Active, Sequence[str]]:
        """What serves a model, and the names of its detectors."""
        active = self._context.control.active(model)
        if active is None:
            raise TransientError(self._context.control.problem(model))
        found = self._context.checkpoints.get(model, active.version, active.digest)
        return active, found.suite.names

    async def _score(self, model: str, active: Active, items: Sequence[Item]) -> Scored:
        checkpoints = self._context.checkpoints
        score = partial(checkpoints.score, model, active.version, active.digest)
        x = np.concatenate([item.request.x for item in items])
        loop = asyncio.get_running_loop()
        parts = []
        for start in range(0, len(x), FORWARD_ROWS):
            work = partial(score, x[start : start + FORWARD_ROWS])
            parts.append(await loop.run_in_executor(checkpoints.executor, work))
        return join(parts)

    def _out(self, item: Item, part: Scored, version: int, names: Sequence[str]) -> Out:
        record, request = item.record, item.request
        value, headers = encode_score(
            request, version=version, log=self._context.logs[INPUTS], topic=INPUTS,
            partition=record.partition, offset=record.offset, timestamp=record.timestamp,
            detectors=names, prediction=part.prediction, confidence=part.confidence,
            p_value=part.p_value, p_values=part.p_values, coverage=part.coverage,
            verdict=verdicts(part.flag),
        )  # fmt: skip
        return Out("scores", value, request.id.encode(), headers)

    def _summaries(
        self, model: str, version: int, items: Sequence[Item], scored: Scored
    ) -> list[Out]:
        numbers: dict[str, int] = {}
        rows = pack(
            [(item.record.partition, item.record.offset) for item in items],
            [numbers.setdefault(item.request.client, len(numbers)) for item in items],
            [item.request.x for item in items],
            scored,
        )
        time = from_millis(max(item.record.timestamp for item in items))
        log = self._context.logs[INPUTS]
        outs = []
        for start in range(0, len(rows), SUMMARY_ROWS):
            part = rows[start : start + SUMMARY_ROWS]
            summary = Summary.pack(
                part, kind="input", log=log, topic=INPUTS, model=model,
                model_version=str(version), time=stream_time(time, now=datetime.now(UTC)),
                subjects=tuple(numbers),
            )  # fmt: skip
            first = "/".join(str(part[0][name]) for name in ("partition", "offset", "row"))
            name = uuid.uuid5(log, f"{INPUTS}/{first}/summary")
            headers = event_headers("summary", id=str(name), source_role=self.role, time=time)
            outs.append(Out("summaries", summary.encode(), model.encode(), headers))
        return outs


def expected_models(settings: Settings) -> Mapping[str, Expected]:
    """What each configured model takes, as the decoder needs it."""
    return {
        name: Expected(
            model=name, shape=table.input.shape, dtype=table.input.dtype,
            low=table.input.range[0], high=table.input.range[1], name=table.input.name,
        )
        for name, table in settings.models.items()
    }  # fmt: skip
