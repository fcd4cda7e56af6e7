"""Summaries: what scoring and screening tell the owner of a model, row by row.

The rows are packed little-endian (36 to 44 bytes each) and travel as base64 in a JSON event, so
that a batch of thousands costs one small record. Rows keep their positions: the owner drops those
at or below the highest position that it has applied.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from schemas.base import Event, Time
from schemas.errors import SchemaError

INPUT_ROW = np.dtype(
    [
        ("partition", "<u2"), ("offset", "<i8"), ("row", "<u4"),
        ("subject", "<u2"),       # index into Summary.subjects (client)
        ("prediction", "<u2"),
        ("confidence", "<f4"),
        ("score", "<f4"),         # the fused score
        ("p_value", "<f4"),
        ("level", "u1"),          # how many of the checkpoint's thresholds the score exceeds, 0..5
        ("tier", "u1"),           # index of the calibration tier (coverage)
        ("fingerprint", "<u8"),
    ]
)  # fmt: skip
"""One scored input."""

SAMPLE_ROW = np.dtype(
    [
        ("partition", "<u2"), ("offset", "<i8"), ("row", "<u4"),
        ("subject", "<u2"),       # index into Summary.subjects (source)
        ("label", "<u2"),
        ("neighbour_label", "<u2"),
        ("score", "<f4"),         # the screen's fused score
        ("p_value", "<f4"),
        ("level", "u1"),
        ("quarantined", "u1"),    # 1 if the sample went to training.quarantine
        ("reasons", "<u2"),       # bit i: Summary.reasons[i] fired
        ("fingerprint", "<u8"),   # of input and label
    ]
)  # fmt: skip
"""One screened training sample."""

LABEL_ROW = np.dtype(
    [
        ("partition", "<u2"), ("offset", "<i8"), ("row", "<u4"),
        ("subject", "<u2"),       # index into Summary.subjects (client)
        ("prediction", "<u2"),
        ("label", "<u2"),
    ]
)  # fmt: skip
"""One label that met its score; the position is that of whichever came second.

So that positions only grow in ``labels`` and in ``scores``, though a label may come before its
score; ``Summary.topic`` says which of the two.
"""

ROWS: dict[str, np.dtype[Any]] = {"input": INPUT_ROW, "sample": SAMPLE_ROW, "label": LABEL_ROW}


class Summary(Event):
    """Rows of one model from one worker, in log order within each partition."""

    event: ClassVar[str] = "summary"

    kind: Literal["input", "sample", "label"]
    log: UUID
    topic: str
    model: str
    model_version: str
    time: Time
    subjects: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    notes: dict[str, Any] = {}
    """Free figures for explanations, such as a trigger's place, by subject id."""
    rows: str

    @classmethod
    def pack(cls, rows: NDArray[np.void], **fields: Any) -> Summary:
        """Build a summary from a structured array of the kind's dtype."""
        return cls(rows=base64.b64encode(rows.tobytes()).decode(), **fields)

    def unpack(self) -> NDArray[np.void]:
        """The rows as a structured array of the kind's dtype.

        Raises
        ------
        SchemaError
            If the bytes are no whole number of rows, or name a subject that is not listed.
        """
        dtype = ROWS[self.kind]
        try:
            raw = base64.b64decode(self.rows, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SchemaError("not base64", field="rows") from error
        if len(raw) % dtype.itemsize:
            raise SchemaError(
                f"{len(raw)} bytes are no whole rows of {dtype.itemsize}", field="rows"
            )
        rows = np.frombuffer(raw, dtype=dtype)
        if rows.size and int(rows["subject"].max()) >= len(self.subjects):
            raise SchemaError("a row names a subject that is not listed", field="rows")
        for name in ("confidence", "score", "p_value"):
            if name in (dtype.names or ()) and not np.isfinite(rows[name]).all():
                raise SchemaError(f"{name} is not finite", field="rows")
        return rows
