"""The rows of a micro-batch: cut into records, joined to batches, packed for the summary."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.suite import Scored
from schemas.summary import INPUT_ROW


def fingerprints(x: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Name each row by its content: BLAKE2b of its bytes, 8 bytes long.

    Parameters
    ----------
    x:
        (batch, *shape).

    Returns
    -------
    (batch,) equal for equal rows.

    Examples
    --------
    >>> a, b, c = fingerprints(np.array([[1, 2], [1, 2], [2, 1]], np.uint8)).tolist()
    >>> a == b != c
    True
    """
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, "<u8")


def split(scored: Scored, sizes: Sequence[int]) -> Iterator[Scored]:
    """Cut the figures of a batch into those of its records.

    Parameters
    ----------
    sizes:
        Rows of each record, in order.
    """
    columns = _columns(scored)
    start = 0
    for size in sizes:
        yield Scored(*[column[start : start + size] for column in columns])
        start += size


def join(parts: Sequence[Scored]) -> Scored:
    """Put the figures of several batches one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Scored(*map(np.concatenate, zip(*map(_columns, parts), strict=True)))


def pack(
    positions: Sequence[tuple[int, int]],
    subjects: Sequence[int],
    inputs: Sequence[NDArray[np.generic]],
    scored: Scored,
) -> NDArray[np.void]:
    """Pack a batch as rows of a summary.

    Parameters
    ----------
    positions:
        (partition, offset) of each record.
    subjects:
        Index of each record's client in the summary's list.
    inputs:
        (rows, *shape) of each record, in the wire dtype.
    scored:
        Figures of all rows, in the same order.
    """
    sizes = [len(x) for x in inputs]
    rows = np.zeros(sum(sizes), INPUT_ROW)
    rows["partition"] = np.repeat([partition for partition, _ in positions], sizes)
    rows["offset"] = np.repeat([offset for _, offset in positions], sizes)
    rows["row"] = np.arange(len(rows)) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    rows["subject"] = np.repeat(subjects, sizes)
    rows["fingerprint"] = np.concatenate([fingerprints(x) for x in inputs])
    for name in ("prediction", "confidence", "score", "p_value", "level", "tier"):
        rows[name] = getattr(scored, name)
    return rows


def verdicts(flag: NDArray[np.bool_]) -> list[str]:
    """The advice for each row. Nothing blocks a client yet, so a flag is all that is said."""
    return ["flag" if one else "allow" for one in flag]


def _columns(scored: Scored) -> tuple[Any, ...]:
    return tuple(getattr(scored, field.name) for field in dataclasses.fields(scored))
