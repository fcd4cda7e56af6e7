"""Tensors of the Open Inference Protocol v2, in JSON and in the binary extension, read strictly."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from schemas import strict_json
from schemas.errors import SchemaError
from schemas.headers import Written

DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
}
_NAMES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
_KEYS = {"name", "datatype", "shape", "data", "parameters"}
_MAX_DIMENSIONS = 8
_MEDIA = frozenset({"application/json", "application/octet-stream", "application/cloudevents+json"})
"""As they are mostly written."""
_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Body:
    """The JSON part of a request, and the bytes behind it (None: all is JSON)."""

    fields: dict[str, Any]
    binary: bytes | None


def media_type(content_type: str) -> str:
    """The media type in lower case; of parameters, only UTF-8 as the charset is taken.

    Raises
    ------
    SchemaError
        For any other parameter.
    """
    if content_type in _MEDIA:
        return content_type
    media, *parameters = [part.strip().lower() for part in content_type.split(";")]
    for parameter in parameters:
        if parameter.replace(" ", "") not in ("charset=utf-8", 'charset="utf-8"'):
            raise SchemaError(f"unknown parameter {parameter[:80]!r}", field="content-type")
    return media


def split(
    value: bytes | None, content_type: str, length: str | None, *, size: int, depth: int
) -> Body:
    """Take a record apart by its content type.

    Raises
    ------
    SchemaError
        For an unknown content type, a wrong length header, or what is no JSON object.
    """
    media = media_type(content_type)
    if value is None:
        raise SchemaError("the record has no value")
    if len(value) > size:
        raise SchemaError(f"{len(value)} bytes; at most {size} are allowed", error_class="TooLarge")
    binary: bytes | None = None
    if media == "application/octet-stream":
        header = header_length(length, len(value))
        value, binary = value[:header], value[header:]
    elif media == "application/json":
        if length is not None:
            raise SchemaError(
                "only application/octet-stream has this header",
                field="inference-header-content-length",
            )
    else:
        raise SchemaError(f"the content type {media[:80]!r} is not read here", field="content-type")
    fields = strict_json.loads(value, limit=size, depth=depth)
    if not isinstance(fields, dict):
        raise SchemaError("a request is a JSON object")
    return Body(fields, binary)


def header_length(text: str | None, size: int) -> int:
    """What ``inference-header-content-length`` says: bytes of JSON before the tensors.

    Parameters
    ----------
    size:
        Bytes of the value.

    Raises
    ------
    SchemaError
        If it is missing, no decimal, or more than there is.
    """
    field = "inference-header-content-length"
    if text is None:
        raise SchemaError("application/octet-stream needs this header", field=field)
    decimal = text.isascii() and text.isdigit() and len(text) <= 12
    if not decimal or (text[0] == "0" and text != "0") or int(text) > size:
        raise SchemaError(
            f"{text[:40]!r} is no length within the value's {size} bytes", field=field
        )
    return int(text)


def read(body: Body, *, max_rows: int) -> dict[str, tuple[str, str, NDArray[Any]]]:
    """Read all input tensors.

    Returns
    -------
    dict
        Name to (field, datatype, array of the declared shape), in order.

    Raises
    ------
    SchemaError
        Naming the tensor's field.
    """
    inputs = body.fields.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise SchemaError("a request needs a list of at least one tensor", field="inputs")
    result: dict[str, tuple[str, str, NDArray[Any]]] = {}
    offset = 0
    for index, tensor in enumerate(inputs):
        field = f"inputs[{index}]"
        name, datatype, shape = _declared(tensor, field, max_rows)
        if name in result:
            raise SchemaError(f"the tensor {name!r} is there twice", field=f"{field}.name")
        if body.binary is None:
            array = _from_json(tensor.get("data"), datatype, shape, f"{field}.data")
        else:
            array = _from_binary(tensor, body.binary, offset, datatype, shape, field)
            offset += array.nbytes
        result[name] = (field, datatype, array)
    if body.binary is not None and offset != len(body.binary):
        raise SchemaError(f"{len(body.binary) - offset} bytes are left over", field="value")
    return result


def _declared(tensor: Any, field: str, max_rows: int) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(tensor, dict):
        raise SchemaError("a tensor is a JSON object", field=field)
    if not tensor.keys() <= _KEYS:
        raise SchemaError(f"unknown field {min(tensor.keys() - _KEYS)[:100]!r}", field=field)
    if not isinstance(tensor.get("parameters", {}), dict):
        raise SchemaError("parameters are a JSON object", field=f"{field}.parameters")
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str) or not name:
        raise SchemaError("a tensor needs a name", field=f"{field}.name")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise SchemaError(f"the datatype is one of {', '.join(DTYPES)}", field=f"{field}.datatype")
    if not _is_shape(shape):
        raise SchemaError("a shape is 1 to 8 positive integers", field=f"{field}.shape")
    if shape[0] > max_rows:
        raise SchemaError(
            f"{shape[0]} rows; at most {max_rows}", field=f"{field}.shape", error_class="TooLarge"
        )
    return name, datatype, tuple(shape)


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        return False
    return set(map(type, shape)) == {int} and min(shape) > 0


def _from_binary(
    tensor: dict[str, Any], binary: bytes, offset: int, datatype: str, shape: tuple[int, ...],
    field: str,
) -> NDArray[Any]:  # fmt: skip
    if "data" in tensor:
        raise SchemaError("the binary part holds all tensors", field=f"{field}.data")
    dtype = DTYPES[datatype]
    size = math.prod(shape) * dtype.itemsize
    declared = tensor.get("parameters", {}).get("binary_data_size")
    if type(declared) is not int or declared != size:
        raise SchemaError(
            f"the shape asks for {size} bytes, {str(declared)[:40]} are declared",
            field=f"{field}.parameters.binary_data_size",
        )
    if offset + size > len(binary):
        raise SchemaError(
            f"{size} bytes are declared, {len(binary) - offset} are there", field=f"{field}.data"
        )
    return np.frombuffer(binary, dtype, math.prod(shape), offset).reshape(shape)


def _from_json(data: Any, datatype: str, shape: tuple[int, ...], field: str) -> NDArray[Any]:
    if not isinstance(data, list):
        raise SchemaError("the data are a list", field=field)
    flat = _flatten(data, shape, field)
    if len(flat) != math.prod(shape):
        raise SchemaError(
            f"the shape asks for {math.prod(shape)} values, there are {len(flat)}", field=field
        )
    return (_floats(flat, field) if datatype == "FP32" else _whole(flat, datatype, field)).reshape(
        shape
    )


def _floats(flat: list[Any], field: str) -> NDArray[Any]:
    """Numbers as FP32; through doubles, as ``1e999`` is read as infinity and refused there."""
    wrong = SchemaError("FP32 takes finite numbers that it can hold", field=field)
    if not set(map(type, flat)) <= {int, float}:
        raise wrong
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        raise wrong from None
    if not np.abs(wide).max() <= _FLOAT32:
        raise wrong
    return wide.astype(DTYPES["FP32"])


def _whole(flat: list[Any], datatype: str, field: str) -> NDArray[Any]:
    """Whole numbers; the kinds are looked at first, as true would pass for 1 and 1.5 be cut."""
    low, high = (0, 255) if datatype == "UINT8" else (-(2**63), 2**63 - 1)
    if set(map(type, flat)) == {int}:
        with contextlib.suppress(OverflowError, ValueError):  # out of range
            if datatype == "UINT8":
                return np.frombuffer(bytes(flat), np.uint8)
            return np.array(flat, DTYPES[datatype])
    raise SchemaError(f"{datatype} takes whole numbers from {low} to {high}", field=field)


def _flatten(data: list[Any], shape: Sequence[int], field: str) -> list[Any]:
    """Flat data as they are; nested data only if each level has the declared length."""
    if not data or not isinstance(data[0], list):
        return data
    wrong = SchemaError("the nesting is not that of the shape", field=field)
    if len(data) != shape[0]:
        raise wrong
    for length in shape[1:]:
        if not all(isinstance(item, list) and len(item) == length for item in data):
            raise wrong
        data = [value for item in data for value in item]
    return data


def write(
    fields: Mapping[str, Any], parameters: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]],
    encoding: Literal["json", "binary"],
) -> tuple[bytes, Written]:  # fmt: skip
    """Write a request.

    Parameters
    ----------
    fields:
        All but parameters and tensors.
    parameters:
        Left out if there are none.
    arrays:
        Tensors by name, in order; uint8, float32 or int64.

    Returns
    -------
    tuple
        The value, and the headers that say how it is encoded.
    """
    inputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in arrays.items():
        datatype = _NAMES[array.dtype.name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if encoding == "json":
            tensor["data"] = array.ravel().tolist()
        else:
            raw.append(np.ascontiguousarray(array, DTYPES[datatype]).tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        inputs.append(tensor)
    body = {**fields, **({"parameters": dict(parameters)} if parameters else {}), "inputs": inputs}
    head = json.dumps(body, separators=(",", ":")).encode()
    if encoding == "json":
        return head, (("content-type", b"application/json"),)
    return head + b"".join(raw), (
        ("content-type", b"application/octet-stream"),
        ("inference-header-content-length", str(len(head)).encode()),
    )
