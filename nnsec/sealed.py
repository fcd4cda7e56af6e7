"""Snapshots of state as bytes: arrays without pickle, behind their digest."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import DigestMismatch


def seal(**arrays: NDArray[Any]) -> bytes:
    """Write arrays as npz without pickle, behind their SHA-256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    body = buffer.getvalue()
    return hashlib.sha256(body).digest() + body


def unseal(snapshot: bytes) -> dict[str, NDArray[Any]]:
    """Read what `seal` wrote.

    Raises
    ------
    DigestMismatch
        If the bytes differ, or are no arrays.
    """
    if hashlib.sha256(snapshot[32:]).digest() != snapshot[:32]:
        raise DigestMismatch("a state snapshot's bytes differ from its digest; it is not restored")
    try:
        with np.load(io.BytesIO(snapshot[32:]), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds
        raise DigestMismatch(f"a state snapshot holds no arrays: {error!r}") from error
