"""What goes to the process that runs models and back: a line of JSON, and the arrays it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.suite import Scored


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write a message."""
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shapes = {name: (array.dtype.str, array.shape) for name, array in packed.items()}
    line = json.dumps({**head, "arrays": shapes}).encode()
    return b"\n".join([line, b"".join(array.tobytes() for array in packed.values())])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a message; the arrays share its memory and cannot be written to."""
    end = message.index(b"\n")
    head = json.loads(message[:end])
    arrays, place = {}, end + 1
    for name, (dtype, shape) in head.pop("arrays").items():
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(message, dtype, count, place).reshape(shape)
        place += arrays[name].nbytes
    return head, arrays


def figures(scored: Scored) -> dict[str, NDArray[Any]]:
    """The arrays of a batch's figures, by name."""
    return {field.name: getattr(scored, field.name) for field in fields(scored)}
