"""Tensors as bytes: safetensors only, finite only, checked before anything is built from them."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from nnsec.errors import SchemaError, Unsafe
from schemas import strict_json

MAX_HEADER = 16 * 1024 * 1024
_FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_BFLOAT_INFINITE = 0x7F80
"""All exponent bits of a bfloat16: infinity or NaN."""
_MOST, _AXES = 2**40, 64
"""Numbers, more than a file may hold, and axes of a tensor. Beside an axis of length 0, which needs
no bytes, another may have any length, and then numpy and torch each fail in their own way."""
_WHOLE = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_ZIP_END = re.compile(rb"PK\x05\x06(?=.{18})", re.DOTALL)
_ZIP_TAIL = 128 * 1024
"""Bytes at the end where a zip archive's end record is looked for; zipfile looks at 65,558."""


def check(name: str, content: bytes) -> None:
    """Refuse whatever is not safetensors with finite numbers.

    Parameters
    ----------
    name:
        File name, for the message.
    content:
        The whole file.

    Raises
    ------
    Unsafe
        For pickle, zip (also hidden at the end), a broken header, NaN and infinity.
    """
    header, start = _header(name, content)
    if _ends_as_zip(content):
        raise Unsafe(f"{name} can be opened as a zip archive too; refused")
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        try:
            kind, (begin, end) = entry["dtype"], entry["data_offsets"]
            shape = entry["shape"]
            if len(shape) > _AXES or math.prod(max(1, one) for one in shape) > _MOST:
                raise Unsafe(f"{name}: {tensor!r} has a shape that no tensor has")
            finite = _finite(kind, memoryview(content)[start + begin : start + end])
        except (KeyError, TypeError, ValueError) as error:
            raise Unsafe(f"{name}: the entry of {tensor!r} is broken: {error}") from error
        if not finite:
            raise Unsafe(f"{name}: {tensor!r} holds NaN or infinity")


def load_arrays(name: str, content: bytes) -> dict[str, NDArray[Any]]:
    """Read checked bytes as numpy arrays.

    Raises
    ------
    Unsafe
        As `check`.
    """
    check(name, content)
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Unsafe(f"{name} is not safetensors: {error}") from error
    return arrays


def load_tensors(name: str, content: bytes) -> dict[str, Tensor]:
    """Read checked bytes as torch tensors.

    Raises
    ------
    Unsafe
        As `check`.
    """
    check(name, content)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Unsafe(f"{name} is not safetensors: {error}") from error
    return tensors


def dump_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write numpy arrays, in a fixed order."""
    contiguous = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    content: bytes = safetensors.numpy.save(contiguous)
    return content


def dump_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Write torch tensors, in a fixed order; shared ones are copied."""
    separate = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    content: bytes = safetensors.torch.save(separate)
    return content


def _header(name: str, content: bytes) -> tuple[dict[str, Any], int]:
    """The header's entries, and where the data begin."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MAX_HEADER, len(content) - 8) or content[8:9] != b"{":
        kind = "is not safetensors"
        if content[:4] in _ZIP:
            kind = "is a zip archive (as torch.save writes), not safetensors"
        elif content[:1] == b"\x80":
            kind = "looks like a pickle, not safetensors"
        raise Unsafe(f"{name} {kind}; convert it with safetensors.torch.save_file")
    try:
        header: dict[str, Any] = strict_json.loads(content[8 : 8 + size], limit=MAX_HEADER)
    except SchemaError as error:
        raise Unsafe(f"{name}: the header is broken: {error}") from error
    return header, 8 + size


def _finite(kind: str, data: memoryview) -> bool:
    if kind in _WHOLE:
        return True
    if kind == "BF16":
        bits = np.frombuffer(data, "<u2") & _BFLOAT_INFINITE
        return not bool((bits == _BFLOAT_INFINITE).any())
    if kind not in _FLOATS:
        msg = f"numbers of type {kind!r} are not read"
        raise ValueError(msg)
    return bool(np.isfinite(np.frombuffer(data, _FLOATS[kind])).all())


def _ends_as_zip(content: bytes) -> bool:
    """Whether a reader finds an archive at the end, whatever comes before and after it."""
    tail = max(0, len(content) - _ZIP_TAIL)
    return any(_is_archive(content, one.start()) for one in _ZIP_END.finditer(content, tail))


def _is_archive(content: bytes, end: int) -> bool:
    """Whether an end record has a directory: the one below it, or none, or one of zip64.

    Weights are any bytes: in random ones the four of an end record are found in one file of 30,000,
    one with a directory in one of 10^13.
    """
    size, offset = struct.unpack_from("<II", content, end + 12)
    if size == 0 or content.startswith(b"PK\x06\x07", max(0, end - 20)):
        return True
    return any(
        place >= 0 and content.startswith(b"PK\x01\x02", place) for place in (end - size, offset)
    )
