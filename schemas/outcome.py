"""What the screen made of training samples: accepted or quarantined, with reasons and figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from schemas import headers as record_headers
from schemas import tensors
from schemas.base import parse_time
from schemas.errors import SchemaError
from schemas.headers import Headers, Written
from schemas.identities import identity
from schemas.training import LABEL, TOPIC, Sample

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 8
MAX_ROWS = 65_536
"""Rows of a record of ``training.samples``: what ``[limits] rows`` is unless it is changed."""
MOST_ROWS = 100_000
"""What ``[limits] rows`` may be at most: a manifest can name no row beyond."""
MAX_REASONS = 64
_INT32, _INT64 = 2**31 - 1, 2**63 - 1

Verdict = Literal["accepted", "quarantined"]


@dataclass(frozen=True, slots=True)
class Figure:
    """Why a row is suspicious: what a screen measured, and the largest that passes."""

    value: float
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of some rows of one record of ``training.samples``.

    A record leads to at most one on ``training.accepted`` and one on ``training.quarantine``.

    Parameters
    ----------
    log, partition, offset, rows:
        Where the samples lie in ``training.samples``; row numbers ascend.
    sample:
        Only those rows.
    reasons:
        For each row the names of the screens that found it suspicious; an accepted row may have
        some that are only told. All rows of a quarantined source have ``source_quarantined``, alone
        where the row would have been accepted, else beside the others.
    figures:
        For each row the figure of each of its reasons, 0 for ``source_quarantined``; empty if
        there is no other, or if they were left out for size.
    version:
        The checkpoint that screened them.
    time:
        The timestamp of the record.
    """

    log: UUID
    partition: int
    offset: int
    rows: tuple[int, ...]
    sample: Sample
    verdict: Verdict
    reasons: tuple[tuple[str, ...], ...]
    version: str
    time: datetime
    figures: tuple[Mapping[str, Figure], ...] = field(default=())

    @property
    def id(self) -> UUID:
        """The same whenever the record is screened again."""
        return uuid5(self.log, f"{TOPIC}/{self.partition}/{self.offset}/{self.verdict}")


def encode_outcome(outcome: Outcome) -> tuple[bytes, Written]:
    """Write an outcome; its key is the source.

    The value is in the binary encoding. Beside the samples it holds, where there are reasons, a
    tensor ``reasons`` (UINT8 [rows, reasons], 1 where the reason named in ``parameters.reasons``
    was found) and ``figures`` and ``thresholds`` (FP32, alike). Positions are in the headers, and
    the reasons of a quarantined record, so that a reader need not open it.
    """
    sample = outcome.sample
    names = list(dict.fromkeys(name for row in outcome.reasons for name in row))
    arrays: dict[str, NDArray[Any]] = {"input": sample.x, LABEL: sample.labels}
    parameters: dict[str, Any] = {"source": sample.source}
    if names:
        parameters["reasons"] = ",".join(names)
        arrays["reasons"] = np.array([[n in row for n in names] for row in outcome.reasons], "u1")
    if names and outcome.figures:
        found = [[row.get(n, Figure(0, 0)) for n in names] for row in outcome.figures]
        arrays["figures"] = np.array([[f.value for f in row] for row in found], "f4")
        arrays["thresholds"] = np.array([[f.threshold for f in row] for row in found], "f4")
    fields = {
        "id": sample.id, "model_name": sample.model, "model_version": outcome.version,
    }  # fmt: skip
    value, encoded = tensors.write(fields, parameters, arrays, "binary")
    known = dict(encoded)
    event = record_headers.event_headers(
        "sample", id=str(outcome.id), source_role="screen", time=outcome.time,
        content_type=known.pop("content-type").decode(),
    )  # fmt: skip
    own = {
        "nnsec-log": str(outcome.log), "nnsec-partition": str(outcome.partition),
        "nnsec-offset": str(outcome.offset), "nnsec-rows": ",".join(map(str, outcome.rows)),
    }  # fmt: skip
    if outcome.verdict == "quarantined":
        own["nnsec-reasons"] = ",".join(names)
    written = tuple((name, text.encode()) for name, text in own.items())
    return value, (*event, *known.items(), *written, *sample.trace)


def decode_outcome(value: bytes | None, headers: Headers, *, max_rows: int = MAX_ROWS) -> Outcome:
    """Read an outcome; what was released from quarantine reads as accepted.

    Parameters
    ----------
    max_rows:
        Row numbers are below this: readers keep what lies between them.

    Raises
    ------
    SchemaError
        Naming the field or header that is missing or wrong.
    """
    known = {name.lower(): (content or b"").decode("utf-8", "replace") for name, content in headers}
    body = tensors.split(
        value, known.get("content-type", ""), known.get("inference-header-content-length"),
        size=MAX_BYTES, depth=MAX_DEPTH,
    )  # fmt: skip
    arrays = {name: entry[2] for name, entry in tensors.read(body, max_rows=MAX_BYTES).items()}
    rows = _rows(known, max_rows)
    sample = _read_sample(body.fields, arrays, len(rows), known)
    parameters = body.fields["parameters"]
    named = str(parameters.get("reasons", ""))
    names = tuple(named.split(",")) if named else ()
    reasons, figures = _read_reasons(names, arrays, len(rows))
    try:
        log = UUID(known.get("nnsec-log", ""))
    except ValueError as error:
        raise SchemaError("no UUID", field="nnsec-log") from error
    return Outcome(
        log=log,
        partition=_number(known.get("nnsec-partition", ""), "nnsec-partition", _INT32),
        offset=_number(known.get("nnsec-offset", ""), "nnsec-offset", _INT64),
        rows=rows,
        sample=sample,
        verdict="quarantined" if "nnsec-reasons" in known else "accepted",
        reasons=reasons,
        version=identity(body.fields.get("model_version"), None, "model_version"),
        time=parse_time(known.get("ce_time", ""), field="ce_time").astimezone(UTC),
        figures=figures,
    )


def _number(text: str, field: str, largest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > largest:
        raise SchemaError(f"{text[:40]!r} is no number from 0 to {largest}", field=field)
    return int(text)


def _rows(known: Mapping[str, str], max_rows: int) -> tuple[int, ...]:
    field = "nnsec-rows"
    texts = known.get(field, "").split(",", max_rows)
    rows = tuple(_number(text, field, max_rows - 1) for text in texts)
    if any(row >= after for row, after in pairwise(rows)):
        raise SchemaError("row numbers ascend", field=field)
    return rows


def _read_sample(
    fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], rows: int,
    known: Mapping[str, str],
) -> Sample:  # fmt: skip
    parameters = fields.get("parameters")
    if not isinstance(parameters, dict):
        raise SchemaError("parameters are a JSON object", field="parameters")
    x, labels = arrays.get("input"), arrays.get(LABEL)
    if x is None or labels is None or len(x) != rows or labels.shape != (rows,):
        raise SchemaError("an outcome has one input and one label for each row", field="inputs")
    if labels.dtype != np.int64:
        raise SchemaError("labels are INT64", field="inputs")
    return Sample(
        model=identity(fields.get("model_name"), None, "model_name"),
        id=identity(fields.get("id"), None),
        source=identity(parameters.get("source"), None, "parameters.source"),
        x=x,
        labels=labels,
        encoding="binary",
        trace=record_headers.trace(known),
    )


def _read_reasons(
    names: tuple[str, ...], arrays: Mapping[str, NDArray[Any]], rows: int
) -> tuple[tuple[tuple[str, ...], ...], tuple[dict[str, Figure], ...]]:
    if len(names) > MAX_REASONS or len(set(names)) < len(names):
        raise SchemaError(
            f"reasons are at most {MAX_REASONS} names, each once", field="parameters.reasons"
        )
    shape = (rows, len(names))
    tables = [arrays.get(name) for name in ("reasons", "figures", "thresholds")]
    if any(table is not None and table.shape != shape for table in tables):
        raise SchemaError(f"figures of reasons are {list(shape)}", field="inputs")
    bits, values, bounds = tables
    if bits is None:
        return ((),) * rows, ()
    reasons = tuple(tuple(n for n, bit in zip(names, row, strict=True) if bit) for row in bits)
    if values is None or bounds is None:
        return reasons, ()
    place = {name: column for column, name in enumerate(names)}
    figures = tuple(
        {n: Figure(float(values[i, place[n]]), float(bounds[i, place[n]])) for n in row}
        for i, row in enumerate(reasons)
    )
    return reasons, figures
