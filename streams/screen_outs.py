"""What screened samples lead to: accepted and quarantined records, and the rows of the summary."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from nnsec.adapters.records import Out, Record
from nnsec.poisoning import Pattern, Rated
from nnsec.poisoning.samples import labelled
from schemas.base import from_millis
from schemas.errors import SchemaError
from schemas.headers import event_headers
from schemas.outcome import Figure, Outcome, Verdict, encode_outcome
from schemas.summary import SAMPLE_ROW, Summary
from schemas.training import TOPIC, Sample
from streams.times import stream_time

SOURCE_QUARANTINED = "source_quarantined"
SUMMARY_ROWS = 8192
"""Rows in one summary at most: 42 bytes each in base64 must fit a record."""
PER_ROW = 24
"""Bytes that an outcome adds to a row: its label, its number, a byte for each reason."""
PER_RECORD = 4096
TOPICS: dict[Verdict, str] = {
    "accepted": "training.accepted", "quarantined": "training.quarantine"
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One valid record of ``training.samples``, and what was found in it.

    Parameters
    ----------
    version:
        The checkpoint that screened it.
    shut:
        Whether its source is under quarantine: then all of it is held.
    rated:
        None until it is screened.
    """

    record: Record
    sample: Sample
    version: int = 0
    shut: bool = False
    rated: Rated | None = None

    @property
    def quarantined(self) -> NDArray[np.bool_]:
        """(N,) which of its samples are held."""
        if self.shut or self.rated is None:
            return np.ones(len(self.sample), bool)
        return self.rated.quarantined

    @property
    def held(self) -> int:
        """How many of its samples are quarantined."""
        return int(self.quarantined.sum())

    def reasons(self, row: int) -> tuple[str, ...]:
        """Why a sample is held, or what is told of it.

        One of a quarantined source that would be accepted else has that reason alone, without
        what is only told: by this a release knows it.
        """
        rated = self.rated
        named = () if rated is None or self._spared(row) else rated.named(row)
        return (*named, SOURCE_QUARANTINED) if self.shut else named

    def figures(self, row: int) -> dict[str, Figure]:
        """Of each of these reasons but the source's, which has none."""
        rated = self.rated
        if rated is None or self._spared(row):
            return {}
        return {
            name: Figure(float(rated.figures[row, bit]), float(rated.thresholds[row, bit]))
            for bit, name in enumerate(rated.names)
            if rated.reasons[row] >> bit & 1
        }

    def _spared(self, row: int) -> bool:
        return self.shut and self.rated is not None and not self.rated.quarantined[row]


def check_fits(sample: Sample, limit: int) -> None:
    """Refuse a record whose outcome may be larger than its topic takes.

    Raises
    ------
    SchemaError
        Of class ``TooLarge``.
    """
    needed = PER_RECORD + sample.x.nbytes + PER_ROW * len(sample)
    if needed > limit:
        raise SchemaError(
            f"{len(sample)} samples with what is found in them may take {needed} bytes, and "
            f"{TOPICS['accepted']} takes {limit}; send fewer in one record",
            error_class="TooLarge",
        )


def outcomes(item: Item, *, log: UUID, limit: int) -> Iterator[Out]:
    """At most one accepted record and one quarantined one.

    Parameters
    ----------
    log:
        Identity of the log of ``training.samples``.
    limit:
        Most bytes of a record; figures are left out where they do not fit.
    """
    held = item.quarantined
    both: tuple[tuple[Verdict, NDArray[np.bool_]], ...] = (
        ("accepted", ~held), ("quarantined", held),
    )  # fmt: skip
    for verdict, rows in both:
        if rows.any():
            yield _outcome(item, verdict, np.flatnonzero(rows).tolist(), log, limit)


def _outcome(item: Item, verdict: Verdict, rows: Sequence[int], log: UUID, limit: int) -> Out:
    record = item.record
    figures = tuple(item.figures(row) for row in rows)
    outcome = Outcome(
        log=log, partition=record.partition, offset=record.offset, rows=tuple(rows),
        sample=item.sample.take(rows), verdict=verdict,
        reasons=tuple(item.reasons(row) for row in rows),
        version=str(item.version), time=from_millis(record.timestamp),
        figures=figures if any(figures) else (),
    )  # fmt: skip
    value, headers = encode_outcome(outcome)
    if len(value) + sum(len(name) + len(text) for name, text in headers) > limit:
        value, headers = encode_outcome(replace(outcome, figures=()))
    return Out(TOPICS[verdict], value, item.sample.source.encode(), headers)


def summaries(items: Sequence[Item], *, log: UUID) -> Iterator[Out]:
    """What the owner of the model is told of samples: nothing of quarantined sources.

    Parameters
    ----------
    items:
        Of one model and one checkpoint, in log order.
    """
    seen = [(item, item.rated) for item in items if item.rated is not None and not item.shut]
    if not seen:
        return
    numbers: dict[str, int] = {}
    notes: dict[str, Any] = {}
    parts = []
    for item, rated in seen:
        source = item.sample.source
        parts.append(_rows(item, rated, numbers.setdefault(source, len(numbers))))
        patterns = [pattern for pattern in rated.patterns if pattern is not None]
        if patterns:
            notes[source] = {"trigger": _note(patterns[-1])}
    rows = np.concatenate(parts)
    first, names = seen[0][0], seen[0][1].names
    time = from_millis(max(item.record.timestamp for item in items))
    for start in range(0, len(rows), SUMMARY_ROWS):
        part = rows[start : start + SUMMARY_ROWS]
        summary = Summary.pack(
            part, kind="sample", log=log, topic=TOPIC, model=first.sample.model,
            model_version=str(first.version), time=stream_time(time, now=datetime.now(UTC)),
            subjects=tuple(numbers), reasons=names, notes=notes,
        )  # fmt: skip
        place = "/".join(str(part[0][name]) for name in ("partition", "offset", "row"))
        name = str(uuid.uuid5(log, f"{TOPIC}/{place}/summary"))
        headers = event_headers("summary", id=name, source_role="screen", time=time)
        yield Out("summaries", summary.encode(), first.sample.model.encode(), headers)


def _rows(item: Item, rated: Rated, subject: int) -> NDArray[np.void]:
    rows = np.zeros(len(rated), SAMPLE_ROW)
    rows["partition"], rows["offset"] = item.record.partition, item.record.offset
    rows["row"] = np.arange(len(rated))
    rows["subject"] = subject
    rows["label"] = item.sample.labels
    for name in ("neighbour_label", "score", "p_value", "level", "quarantined", "reasons"):
        rows[name] = getattr(rated, name)
    rows["fingerprint"] = labelled(rated.fingerprint, item.sample.labels)
    return rows


def _note(pattern: Pattern) -> dict[str, Any]:
    return {
        "label": pattern.label, "rows": pattern.place.rows, "columns": pattern.place.columns,
        "values": pattern.values, "samples": pattern.samples, "of": pattern.of,
        "log10_p": pattern.log10_p,
    }  # fmt: skip
