"""Scores: Open Inference Protocol responses, one output tensor a figure, batch axis first.

A score is written in the encoding that its input used: JSON, or the binary tensor extension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas import headers as record_headers
from schemas import tensors
from schemas.base import MAX_OWN_BYTES, Event, Model, from_millis
from schemas.errors import SchemaError
from schemas.headers import Headers, Written, event_headers
from schemas.inference import Request

VERDICTS = ("allow", "flag", "block")
BINARY = "application/octet-stream"
_DTYPES = {**tensors.DTYPES, "BYTES": np.dtype(object)}
_FIGURES = {
    "prediction": "INT64", "confidence": "FP32", "p_value": "FP32", "p_values": "FP32",
    "coverage": "FP32", "verdict": "BYTES",
}  # fmt: skip
_MAX_HEADERS = 1024
_WORDS = {word: len(word).to_bytes(4, "little") + word.encode() for word in VERDICTS}
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Output(Model):
    """One tensor: ``data`` in JSON, or ``parameters.binary_data_size`` bytes behind it."""

    name: str
    datatype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    data: tuple[int | float | str, ...] = ()
    parameters: dict[str, Any] = {}


class Parameters(Model):
    """Which input it is, and the columns of ``p_values``."""

    log: UUID
    topic: str
    partition: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0)]
    client: str
    detectors: str
    """Names with commas between them."""


class Response(Event):
    """The JSON of a score; outputs that a reader does not know are passed over."""

    event: ClassVar[str] = "score"

    id: str
    model_name: str
    model_version: Annotated[str, Field(pattern="^[0-9]{1,18}$")]
    parameters: Parameters
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The figures of one input record.

    Parameters
    ----------
    log, topic, partition, offset:
        Where the input lies.
    detectors:
        The columns of ``p_values``.
    prediction:
        (rows,) int64.
    confidence, p_value, coverage:
        (rows,) float32.
    p_values:
        (rows, detectors) float32.
    verdict:
        For each row ``allow``, ``flag`` or ``block``.
    """

    id: str
    model: str
    version: int
    log: UUID
    topic: str
    partition: int
    offset: int
    client: str
    detectors: tuple[str, ...]
    prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    p_value: NDArray[np.float32]
    p_values: NDArray[np.float32]
    coverage: NDArray[np.float32]
    verdict: tuple[str, ...]


def encode_score(
    request: Request, *, version: int, log: UUID, topic: str, partition: int, offset: int,
    timestamp: int, detectors: Sequence[str], prediction: NDArray[np.int64],
    confidence: NDArray[np.float32], p_value: NDArray[np.float32], p_values: NDArray[np.float32],
    coverage: NDArray[np.float32], verdict: Sequence[str],
) -> tuple[bytes, Written]:  # fmt: skip
    """Write the score of a request.

    Parameters
    ----------
    log, topic, partition, offset, timestamp:
        Where the request lies, and its record's time in milliseconds: a replay writes the same.
    detectors:
        The columns of ``p_values``; a name holds no comma.
    prediction, confidence, p_value, p_values, coverage, verdict:
        As in `Score`.

    Returns
    -------
    tuple
        The value and its headers.
    """
    fields: dict[str, Any] = {
        "id": request.id, "model_name": request.model, "model_version": str(version),
        "parameters": {
            "log": str(log), "topic": topic, "partition": partition, "offset": offset,
            "client": request.client, "detectors": ",".join(detectors),
        },
    }  # fmt: skip
    arrays: tuple[NDArray[Any], ...] = (prediction, confidence, p_value, p_values, coverage)
    heads = _heads(*p_values.shape)
    extra: Written = request.trace
    if request.encoding == "json":
        media = "application/json"
        parts = [*_texts(arrays), ",".join(f'"{word}"' for word in verdict)]
        value = _body(fields, [f'{h},"data":[{p}]}}' for h, p in zip(heads, parts, strict=True)])
    else:
        media = BINARY
        kinds = _FIGURES.values()
        raws = [_raw(array, kind) for array, kind in zip(arrays, kinds, strict=False)]
        raws.append(b"".join(_WORDS[word] for word in verdict))
        sizes = [f'{{"binary_data_size":{len(raw)}}}' for raw in raws]
        start = _body(
            fields, [f'{h},"parameters":{s}}}' for h, s in zip(heads, sizes, strict=True)]
        )
        value = b"".join((start, *raws))
        extra = (("inference-header-content-length", str(len(start)).encode()), *extra)
    return value, event_headers(
        "score", id=str(uuid5(log, f"{topic}/{partition}/{offset}/score")), source_role="score",
        time=from_millis(timestamp), content_type=media, extra=extra,
    )  # fmt: skip


def decode_score(value: bytes | None, headers: Headers) -> Score:
    """Read a score.

    Raises
    ------
    SchemaError
        Naming the field, for anything that is not a score.
    """
    known = record_headers.read(headers, limit=_MAX_HEADERS)
    length = known.get("inference-header-content-length")
    binary: bytes | None = None
    if value is not None and known.get("content-type") == BINARY:
        size = tensors.header_length(length, len(value))
        value, binary = value[:size], value[size:]
    if binary is not None and len(binary) > MAX_OWN_BYTES:
        raise SchemaError(f"{len(binary)} bytes of tensors", error_class="TooLarge")
    response = Response.decode(value)
    found = _read(response.outputs, binary)
    return _score(response, found)


def _score(response: Response, found: Mapping[str, Any]) -> Score:
    names = response.parameters.detectors
    detectors = tuple(names.split(",")) if names else ()
    rows = found["prediction"].shape[:1]
    for name in _FIGURES:
        expected = (*rows, len(detectors)) if name == "p_values" else rows
        if found[name].shape != expected or not rows:
            raise SchemaError(f"{name} has the shape {found[name].shape}", field="outputs")
    verdict = tuple(found["verdict"].tolist())
    if unknown := set(verdict) - set(VERDICTS):
        raise SchemaError(f"no verdict {min(map(str, unknown))[:40]!r}", field="outputs")
    for name in ("p_value", "p_values"):
        if not ((found[name] > 0) & (found[name] <= 1)).all():
            raise SchemaError(f"{name} is not within (0, 1]", field="outputs")
    place = response.parameters
    return Score(
        id=response.id, model=response.model_name, version=int(response.model_version),
        log=place.log, topic=place.topic, partition=place.partition, offset=place.offset,
        client=place.client, detectors=detectors, prediction=found["prediction"],
        confidence=found["confidence"], p_value=found["p_value"], p_values=found["p_values"],
        coverage=found["coverage"], verdict=verdict,
    )  # fmt: skip


def _read(outputs: Sequence[Output], binary: bytes | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    start = 0
    for index, output in enumerate(outputs):
        field = f"outputs[{index}]"
        raw = b""
        if binary is not None:
            size = output.parameters.get("binary_data_size")
            if type(size) is not int or not 0 <= size <= len(binary) - start:
                raise SchemaError("no size within the value", field=field)
            raw, start = binary[start : start + size], start + size
        if output.name not in _FIGURES:
            continue
        if output.datatype != _FIGURES[output.name] or output.name in found:
            raise SchemaError(f"{output.name} is one {_FIGURES[output.name]}", field=field)
        found[output.name] = _array(output, raw if binary is not None else None, field)
    if binary is not None and start != len(binary):
        raise SchemaError(f"{len(binary) - start} bytes are left over", field="outputs")
    if missing := _FIGURES.keys() - found.keys():
        raise SchemaError(f"no {min(missing)}", field="outputs")
    return found


def _array(output: Output, raw: bytes | None, field: str) -> NDArray[Any]:
    """One tensor of the declared shape."""
    kinds = {"INT64": (int,), "FP32": (int, float), "BYTES": (str,)}[output.datatype]
    if raw is None and not all(type(v) in kinds for v in output.data):
        raise SchemaError(f"no {output.datatype}", field=field)
    try:
        data: Any = output.data if raw is None else _values(raw, output.datatype)
        with np.errstate(over="ignore"):  # told below
            array = np.array(data, _DTYPES[output.datatype])
        array = array.reshape(output.shape)
    except (OverflowError, ValueError) as error:
        raise SchemaError(f"no {output.datatype} of its shape: {error}", field=field) from error
    if output.datatype == "FP32" and not np.isfinite(array).all():
        raise SchemaError("not finite", field=field)
    return array


def _values(raw: bytes, datatype: str) -> NDArray[Any] | list[str]:
    if datatype != "BYTES":
        return np.frombuffer(raw, _DTYPES[datatype])
    words = []
    start = 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        words.append(raw[start + 4 : end].decode("utf-8", "replace"))
        start = end
    return words


def _raw(array: NDArray[Any], datatype: str) -> bytes:
    return np.ascontiguousarray(array, _DTYPES[datatype]).tobytes()


def _texts(arrays: Sequence[NDArray[Any]]) -> list[str]:
    """The data of each array with the shortest figures that its precision needs.

    `json` cannot write those; all of single precision are turned into words at once.
    """
    prediction, *figures = (array.ravel() for array in arrays)
    words = np.concatenate(figures).astype("U").tolist()
    ends = np.cumsum([len(figure) for figure in figures]).tolist()
    starts = [0, *ends[:-1]]
    texts = [",".join(words[start:end]) for start, end in zip(starts, ends, strict=True)]
    return [",".join(map(str, prediction.tolist())), *texts]


@lru_cache(maxsize=256)
def _heads(rows: int, columns: int) -> tuple[str, ...]:
    """The JSON of each tensor up to its data, without the closing brace."""
    shapes = {name: [rows, columns] if name == "p_values" else [rows] for name in _FIGURES}
    return tuple(
        _encode({"name": name, "datatype": datatype, "shape": shapes[name]})[:-1]
        for name, datatype in _FIGURES.items()
    )


def _body(fields: Mapping[str, Any], outputs: Sequence[str]) -> bytes:
    return f'{_encode(fields)[:-1]},"outputs":[{",".join(outputs)}]}}'.encode()
