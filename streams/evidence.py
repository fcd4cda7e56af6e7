"""The evidence: owns the models of its partitions, and is the only writer of alerts.

State resumes exactly: on assignment the newest snapshot of a partition is restored, and the
summaries behind it are read again to the end of the log. Alerts have deterministic ids, so what was
written before is known and is not written again. Records that are then delivered once more are at
or below the highest position applied, and change nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from prometheus_client import Counter, Gauge

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.drift import Reference
from nnsec.errors import NNSecError, TransientError
from nnsec.watch import Watch
from schemas.alert import Alert
from schemas.headers import event_headers
from schemas.summary import Summary
from schemas.topics import DAY_MS
from streams import snapshots
from streams.agent import Context

SNAPSHOT_EVERY = 1.0
"""Seconds between two snapshots of a partition that has changed."""
SECONDS_PER_BYTE = 1e-5
"""A large state is written less often: at most 100 kB a second."""
SAY_EVERY_MS = 60_000
REFERENCES = 64
"""Calibrations remembered; a version of a model never changes."""

ALERTS = Counter("nnsec_alerts", "Alerts written", ["model", "threat"])
UNJUDGED = Counter("nnsec_unjudged_summaries", "Summaries without a usable checkpoint", ["model"])
CLIENTS = Gauge("nnsec_evidence_clients", "Clients that evidence is kept on", ["model"])
EVICTED = Gauge("nnsec_evidence_evicted", "Clients that went because the table was full", ["model"])
REPEATED = Gauge("nnsec_evidence_repeated", "Repeated inputs, which add no evidence", ["model"])
LATE = Gauge("nnsec_late_labels", "Labels of checkpoints that are not kept any more", ["model"])
CONCENTRATED = Gauge(
    "nnsec_drift_concentrated", "Shifts held by few clients: attacks, not drift", ["model"]
)

UNNAMED = Counter(
    "nnsec_unnamed_rows", "Rows without a client or source, by which nobody is judged",
    ["model", "kind"],
)  # fmt: skip
ALLOWANCE = Gauge(
    "nnsec_evidence_allowance", "Part of the day's budget that is handed out, at most",
    ["model", "kind"],
)  # fmt: skip
TRAFFIC = Gauge(
    "nnsec_evidence_traffic", "What came in the day, by what [budget] expects", ["model", "kind"]
)
EXPECTED = {"samples": "expected_samples_per_day"}
"""Key of `[budget]` that tells how much is expected, where it is not that of inputs."""

logger = logging.getLogger(__name__)
Reader = Callable[[str, Mapping[int, int] | None], AsyncIterator[Record]]


class EvidenceAgent:
    """Turns summaries into alerts about clients, sources and models.

    Parameters
    ----------
    context:
        Settings (``budget``) and ``checkpoints.calibration(model, version)``.
    read:
        Reads the partitions of a topic from an offset each to the end, or, if none is named, all
        of it; for tests.
    """

    role = "evidence"
    topics = ("summaries",)

    def __init__(self, context: Context, read: Reader | None = None) -> None:
        self._context = context
        self._read = read or self._read_topic
        self._watches: dict[tuple[int, str], Watch] = {}
        self._offsets: dict[int, int] = {}
        self._held: frozenset[int] = frozenset()
        self._changed: dict[int, float] = {}
        self._generations: dict[int, int] = {}
        self._pauses: dict[int, float] = {}
        self._references: dict[tuple[str, str], Reference] = {}
        self._handed: Sequence[Out] = ()
        self._pending: list[Out] = []
        self._said = 0
        self._exceeded: dict[tuple[str, str], int] = {}

    async def assigned(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Rebuild what new partitions had led to, and forget those that others hold now."""
        held = frozenset(number for topic, number in partitions if topic == "summaries")
        kept = self._held = held & self._held
        # What was handed out last may have been given up unpublished, though its rows count.
        self._pending = [out for out in self._handed if out.topic == "alerts"] + self._pending
        self._handed = ()
        self._watches = {k: w for k, w in self._watches.items() if k[0] in kept}
        self._offsets = {p: o for p, o in self._offsets.items() if p in kept}
        self._changed = {p: t for p, t in self._changed.items() if p in kept}
        if fresh := held - kept:
            self._pending += await self._rebuild(fresh)
        self._held = held  # only now, so that after a failed read it is tried again as a whole

    async def _rebuild(self, partitions: frozenset[int]) -> list[Out]:
        """Restore snapshots and read on from there; the alerts that were never written."""
        self._watches = {k: w for k, w in self._watches.items() if k[0] not in partitions}
        self._offsets = {p: o for p, o in self._offsets.items() if p not in partitions}
        await self._restore(partitions)
        sent = {dict(record.headers).get("ce_id") async for record in self._read("alerts", None)}
        found: list[Out] = []
        start = {number: self._offsets.get(number, -1) + 1 for number in partitions}
        expected = dict(start)
        async for record in self._read("summaries", start):
            if 0 < expected.pop(record.partition, 0) < record.offset:
                logger.warning(
                    "summaries/%d begins at %d now, after the %d that the evidence is of: what lay "
                    "between does not count", record.partition, record.offset,
                    start[record.partition],
                )  # fmt: skip
            try:
                summary = Summary.decode(record.value)
                reference = await self._reference(summary)
                alerts = self._apply(record, summary, reference)
            except TransientError:
                raise
            except NNSecError as error:
                logger.warning("summary %d/%d: %s", record.partition, record.offset, error)
                continue
            found += [_out(alert) for alert in alerts if str(alert.id).encode() not in sent]
        return found

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Apply a batch; all of it is decoded first, so that a bad record leaves no trace."""
        decoded: list[tuple[Record, Summary, Reference | None]] = []
        for record in records:
            summary = Summary.decode(record.value)
            summary.unpack()
            decoded.append((record, summary, await self._reference(summary)))
        outs, self._pending = self._pending, []
        for record, summary, reference in decoded:
            outs += [_out(alert) for alert in self._apply(record, summary, reference)]
        self._handed = outs
        return outs

    async def tick(self, now: float) -> Sequence[Out]:
        """Write a snapshot of what has changed, at most once a second.

        Never together with alerts: a snapshot is written only when all that its rows led to is.
        """
        self._handed, self._pending = self._pending, []
        if self._handed:
            return self._handed
        outs: list[Out] = []
        for partition, since in list(self._changed.items()):
            if since == 0.0:
                self._changed[partition] = now
            elif now - since >= self._pauses.get(partition, SNAPSHOT_EVERY):
                del self._changed[partition]
                written = await self._snapshot(partition)
                size = sum(len(out.value or b"") for out in written)
                self._pauses[partition] = max(SNAPSHOT_EVERY, size * SECONDS_PER_BYTE)
                outs += written
        return outs

    async def _reference(self, summary: Summary) -> Reference | None:
        """The calibration of a summary's checkpoint; None if there is none to be had."""
        known = self._references.get((summary.model, summary.model_version))
        if known is not None:
            return known
        find: Any = self._context.checkpoints
        try:
            found: Reference = await asyncio.to_thread(
                find.calibration, summary.model, int(summary.model_version)
            )
        except TransientError:
            raise
        except (NNSecError, ValueError) as error:
            UNJUDGED.labels(summary.model).inc()
            logger.warning("%s %s is not judged: %s", summary.model, summary.model_version, error)
            return None
        if len(self._references) >= REFERENCES:
            del self._references[next(iter(self._references))]
        self._references[summary.model, summary.model_version] = found
        return found

    def _apply(self, record: Record, summary: Summary, reference: Reference | None) -> list[Alert]:
        if record.offset <= self._offsets.get(record.partition, -1):
            return []
        self._offsets[record.partition] = record.offset
        if reference is None:
            return []
        watch = self._watches.get((record.partition, summary.model))
        if watch is None:
            watch = Watch(summary.model, self._context.settings.budget)
            self._watches[record.partition, summary.model] = watch
        before = watch.concentrated
        kinds = (("inputs", watch.clients), ("samples", watch.sources))
        unnamed = [evidence.unnamed for _, evidence in kinds]
        alerts = watch.apply(summary, reference)
        for (kind, evidence), count in zip(kinds, unnamed, strict=True):
            UNNAMED.labels(summary.model, kind).inc(evidence.unnamed - count)
        self._changed.setdefault(record.partition, 0.0)
        for alert in alerts:
            ALERTS.labels(alert.model, alert.threat).inc()
            logger.info("%s", alert.explanation)
        if watch.concentrated > before and watch.now - self._said >= SAY_EVERY_MS:
            self._said = watch.now
            logger.info(
                "%s: a shift is concentrated in few clients, so it is no drift", summary.model
            )
        CLIENTS.labels(summary.model).set(len(watch.clients))
        EVICTED.labels(summary.model).set(watch.clients.evicted)
        REPEATED.labels(summary.model).set(watch.clients.repeated)
        CONCENTRATED.labels(summary.model).set(watch.concentrated)
        self._spent(watch)
        LATE.labels(summary.model).set(watch.late_labels)
        return alerts

    def _spent(self, watch: Watch) -> None:
        """Show how much of the day's budget is handed out; tell once a day that more came."""
        today = watch.now // DAY_MS
        for kind, allowance in watch.allowances.items():
            begun = allowance.day >= today  # else what it holds is an earlier day's
            spent = allowance.spent / allowance.daily if begun else 0.0
            traffic = allowance.traffic if begun else 0.0
            ALLOWANCE.labels(watch.model, kind).set(spent)
            TRAFFIC.labels(watch.model, kind).set(traffic)
            about = (watch.model, kind)
            if traffic > 1 and self._exceeded.get(about) != allowance.day:
                self._exceeded[about] = allowance.day
                logger.warning(
                    "%s: more %s came today than [budget] %s expects; until midnight UTC evidence "
                    "takes longer", watch.model, kind.replace("_", " "),
                    EXPECTED.get(kind, "expected_inputs_per_day"),
                )  # fmt: skip

    async def _snapshot(self, partition: int) -> list[Out]:
        # In a thread, as it costs some 10 ms; nothing else changes the state meanwhile.
        models = {
            model: await asyncio.to_thread(watch.snapshot)
            for (number, model), watch in self._watches.items()
            if number == partition
        }
        turn = (self._generations.get(partition, 0) + 1) % snapshots.GENERATIONS
        self._generations[partition] = turn
        log = self._context.logs["summaries"]
        found = snapshots.Snapshot(log, self._offsets[partition], turn, models)
        return snapshots.write(self.role, partition, found)

    async def _restore(self, partitions: frozenset[int]) -> None:
        """Take up the newest snapshot of each partition; one that is damaged is not used."""
        records = [record async for record in self._read("state", None)]
        log = self._context.logs["summaries"]
        found = snapshots.newest(self.role, partitions, records, log)
        for partition, snapshot in found.items():
            watches = {}
            try:
                for model, raw in snapshot.models.items():
                    watch = Watch(model, self._context.settings.budget)
                    watch.restore(raw)
                    watches[partition, model] = watch
            except Exception as error:  # noqa: BLE001 - anything may stand behind a right digest
                logger.warning("the snapshot of summaries/%d is not used: %r", partition, error)
                continue
            self._watches |= watches
            self._offsets[partition] = snapshot.offset
            self._generations[partition] = snapshot.generation

    async def _read_topic(
        self, topic: str, start: Mapping[int, int] | None
    ) -> AsyncIterator[Record]:
        places = {(topic, number): offset for number, offset in (start or {}).items()}
        async for record in kafka.read_to_end(
            self._context.settings, (topic,), places, only=start is not None
        ):
            yield record


def _out(alert: Alert) -> Out:
    headers = event_headers("alert", id=str(alert.id), source_role="evidence", time=alert.time)
    return Out("alerts", alert.encode(), alert.model.encode(), headers)
