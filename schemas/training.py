"""Training samples: decoded strictly, and encoded for producers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from schemas import tensors
from schemas.errors import SchemaError
from schemas.headers import Headers, Written
from schemas.identities import choose_subject, record_id
from schemas.inference import Expected, Limits, Skipped, check_tensor, open_record

TOPIC = "training.samples"
LABEL = "label"
MAX_LABEL = 65_535
"""The largest label that a summary's row can hold."""

Encoding = Literal["json", "binary"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One validated record of ``training.samples``, or some of its rows.

    Parameters
    ----------
    x:
        (rows, *shape) in the wire type, finite and in the model's range.
    labels:
        (rows,) int64, 0 to classes − 1.
    trace:
        Trace headers to copy to what this record leads to; none of more than 512 bytes.
    """

    model: str
    id: str
    source: str
    x: NDArray[Any]
    labels: NDArray[np.int64]
    encoding: Encoding
    trace: Written = ()
    label_field: str = "inputs[1].data"
    """Where the labels were, for a dead letter."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> Sample:
        """Some of the rows."""
        index = np.asarray(rows, np.int64)
        return replace(self, x=self.x[index], labels=self.labels[index])


def decode_sample(
    key: bytes | None, value: bytes | None, headers: Headers, *, partition: int, offset: int,
    models: Mapping[str, Expected], limits: Limits, default_model: str, identity_header: str = "",
) -> Sample | Skipped:  # fmt: skip
    """Read one record of ``training.samples``: as an inference input, with a tensor ``label``.

    Parameters
    ----------
    models:
        The configured models by name.
    default_model:
        The model of a record that names none; empty for none.
    identity_header:
        Header (or ``key``) whose value outranks ``parameters.source``; empty for none.

    Raises
    ------
    SchemaError
        With the field and the dead-letter class, for anything else than valid samples.
    """
    opened = open_record(
        value, headers, models=models, limits=limits, default_model=default_model,
        identity_header=identity_header,
    )  # fmt: skip
    if isinstance(opened, Skipped):
        return opened
    expected, arrays = opened.expected, opened.arrays
    for name in (expected.name, LABEL):
        if name not in arrays:
            raise SchemaError(f"a training sample needs a tensor {name!r}", field="inputs")
    others = (entry[0] for name, entry in arrays.items() if name not in (expected.name, LABEL))
    if (more := next(others, None)) is not None:
        raise SchemaError(f"only {expected.name!r} and {LABEL!r} are read", field=more)
    x = check_tensor(arrays[expected.name], expected)
    return Sample(
        model=expected.model,
        id=record_id(opened.fields, opened.known, f"{partition}/{offset}"),
        source=choose_subject(
            key, opened.fields, opened.known, identity_header, parameter="source"
        ),
        x=x,
        labels=_labels(arrays[LABEL], len(x), expected.classes),
        encoding=opened.encoding,
        trace=opened.trace,
        label_field=f"{arrays[LABEL][0]}.data",
    )


def _labels(
    tensor: tuple[str, str, NDArray[Any]], rows: int, classes: int | None
) -> NDArray[np.int64]:
    where, datatype, labels = tensor
    if datatype != "INT64":
        raise SchemaError(f"labels are INT64, not {datatype}", field=f"{where}.datatype")
    if labels.shape != (rows,):
        raise SchemaError(
            f"there are {rows} inputs, so labels are [{rows}]", field=f"{where}.shape"
        )
    check_labels(labels, classes, field=f"{where}.data")
    return labels


def check_labels(labels: NDArray[np.int64], classes: int | None, *, field: str) -> None:
    """Hold labels against the number of classes.

    Raises
    ------
    SchemaError
        With this field, if one is outside.
    """
    highest = MAX_LABEL if classes is None else classes - 1
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > highest:
        raise SchemaError(f"labels from {low} to {high}; 0 to {highest} are allowed", field=field)


def encode_sample(
    *, model: str, x: NDArray[Any], y: NDArray[np.integer], source: str,
    id: str | None = None, encoding: Encoding = "binary",  # noqa: A002 - the protocol's own name
) -> tuple[bytes, Written]:  # fmt: skip
    """Write training samples, for producers; the record's key is the source.

    Parameters
    ----------
    x:
        (rows, *shape), uint8 or float32.
    y:
        (rows,) labels.

    Returns
    -------
    tuple
        The value and its headers.
    """
    fields = {"id": id or str(uuid4()), "model_name": model}
    arrays = {"input": np.asarray(x), LABEL: np.asarray(y, np.int64)}
    return tensors.write(fields, {"source": source}, arrays, encoding)
