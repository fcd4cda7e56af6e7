"""Tensors as bytes: only finite safetensors are read, and nothing is built from anything else."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnsec.checkpoints import tensors
from nnsec.errors import Unsafe


def _file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(dtype: str, data: bytes, shape: list[int]) -> bytes:
    return _file({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}, data)


GOOD = tensors.dump_arrays({"w": np.arange(4, dtype=np.float32), "n": np.array([1, 2])})


def test_arrays_and_tensors_come_back() -> None:
    """Values, types and shapes are kept; the same content gives the same bytes."""
    arrays = {
        "b": np.asfortranarray(np.eye(3)),
        "a": np.array([True]),
        "c": np.arange(5, dtype="u1"),
    }
    content = tensors.dump_arrays(arrays)
    found = tensors.load_arrays("f", content)
    assert {name: (a.dtype, a.tolist()) for name, a in found.items()} == {
        name: (a.dtype, a.tolist()) for name, a in arrays.items()
    }
    assert content == tensors.dump_arrays(dict(reversed(arrays.items())))
    shared = torch.arange(3.0)
    loaded = tensors.load_tensors("f", tensors.dump_tensors({"x": shared, "y": shared}))
    assert torch.equal(loaded["x"], shared)
    assert torch.equal(loaded["y"], shared)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(dtype: torch.dtype, bad: float) -> None:
    """In every width, and the tensor is named."""
    good = torch.tensor([1.0, 2.0], dtype=dtype)
    assert torch.equal(tensors.load_tensors("f", tensors.dump_tensors({"w": good}))["w"], good)
    content = tensors.dump_tensors({"fine": good, "w": torch.tensor([1.0, bad], dtype=dtype)})
    with pytest.raises(Unsafe, match="f: 'w' holds NaN or infinity"):
        tensors.check("f", content)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


def _torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    return buffer.getvalue()


REFUSED: dict[str, tuple[bytes, str]] = {
    "pickle": (pickle.dumps({"w": [1.0] * 50}), "looks like a pickle"),
    "torch.save": (_torch_saved(), "zip archive"),
    "zip": (_zip(), "zip archive"),
    "empty": (b"", "is not safetensors"),
    "short": (b"\x02\0\0\0\0\0\0", "is not safetensors"),
    "header longer than the file": (b"\xff\0\0\0\0\0\0\0{}", "is not safetensors"),
    "header of exabytes": (b"\xff" * 8 + b"{}", "is not safetensors"),
    "header a list": (_file([1]), "is not safetensors"),
    "header broken": (_file(b"{'w'}"), "the header is broken"),
    "a name twice": (_file(b'{"w":{},"w":{}}'), "the header is broken"),
    "no dtype": (_file({"w": {"data_offsets": [0, 0]}}), "'w' is broken"),
    "no offsets": (_file({"w": {"dtype": "F32"}}), "'w' is broken"),
    "an entry a number": (_file({"w": 7}), "'w' is broken"),
    "odd bytes": (_entry("F32", b"\0" * 5, [1]), "'w' is broken"),
    "unknown type": (_entry("F4", b"\0" * 4, [1]), "'F4' are not read"),
    "shape and data differ": (_entry("F32", b"\0" * 8, [3]), "is not safetensors"),
    "no shape": (_file({"w": {"dtype": "F32", "data_offsets": [0, 0]}}), "'w' is broken"),
    "a length of exabytes": (_entry("F32", b"", [0, 2**63]), "'w' has a shape that no tensor has"),
    "lengths of exabytes": (_entry("F32", b"", [2**40, 0, 2**40]), "'w' has a shape"),
    "axes without end": (_entry("F32", b"\0" * 4, [1] * 65), "'w' has a shape"),
    "bytes left over": (GOOD + b"\0" * 8, "is not safetensors"),
    "cut": (GOOD[:-4], "is not safetensors|is broken"),
    "zip at the end": (GOOD + _zip(), "zip archive too"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("load", [tensors.load_arrays, tensors.load_tensors])
def test_what_is_no_safetensors_is_refused(
    content: bytes, words: str, load: Callable[[str, bytes], Any]
) -> None:
    """Pickle, zip, polyglots and broken headers, with a word on what it seems to be."""
    with pytest.raises(Unsafe, match=words) as caught:
        load("weights.safetensors", content)
    assert "weights.safetensors" in str(caught.value)


def test_a_zip_hidden_in_a_tensor_is_found() -> None:
    """Valid safetensors whose last tensor ends as a zip archive could be opened as both."""
    content = tensors.dump_arrays({"w": np.frombuffer(_zip(), np.uint8)})
    with pytest.raises(Unsafe, match="zip archive too"):
        tensors.check("f", content)
    harmless = _zip().replace(b"PK\x01\x02", b"PK\x01\x03")  # no directory, so no archive
    tensors.check("f", tensors.dump_arrays({"w": np.frombuffer(harmless, np.uint8)}))


def _zip64() -> bytes:
    """The same archive with the records that large ones have, and a size that is none."""
    whole = _zip()
    end = whole.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", whole, end + 12)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
    return whole[:end] + record + locator + last


def _commented() -> bytes:
    buffer = io.BytesIO(_zip())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"c" * 65_535
    return buffer.getvalue()


ARCHIVES = {"plain": _zip(), "zip64": _zip64(), "comment": _commented(), "torch": _torch_saved(),
            "empty": struct.pack("<4s18x", b"PK\x05\x06")}  # fmt: skip


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
@pytest.mark.parametrize("after", [0, 1, 8, 65_536])
def test_what_zipfile_opens_is_refused(archive: bytes, after: int) -> None:
    """Also where bytes follow its end, as far as zipfile looks for that."""
    room = max(0, after - (65_535 if archive is ARCHIVES["comment"] else 0))
    content = tensors.dump_arrays({"w": np.frombuffer(archive + bytes(room), np.uint8)})
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() is not None
    with pytest.raises(Unsafe, match="zip archive too"):
        tensors.check("f", content)


def test_the_mark_of_a_zip_alone_is_no_archive() -> None:
    """Weights are any bytes, and hold the four now and then."""
    draw = np.random.default_rng(0)
    for size in draw.integers(8, 70_000, 200):
        data = draw.bytes(int(size))
        place = int(draw.integers(len(data)))
        content = tensors.dump_arrays(
            {"w": np.frombuffer(data[:place] + b"PK\x05\x06" + data[place:], np.uint8)}
        )
        tensors.check("f", content)


def test_an_archive_found_by_its_offset_is_refused() -> None:
    """Some readers take the directory's place from the file's begin, and others from its end."""
    whole = bytearray(_zip())
    start = tensors.dump_arrays({"w": np.frombuffer(_zip(), np.uint8)}).index(b"PK")
    end = whole.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", whole, end + 12)
    struct.pack_into("<II", whole, end + 12, size + 1, offset + start)
    content = tensors.dump_arrays({"w": np.frombuffer(bytes(whole), np.uint8)})
    assert content.index(b"PK\x01\x02") == offset + start
    with pytest.raises(Unsafe, match="zip archive too"):
        tensors.check("f", content)


def test_metadata_are_passed_over() -> None:
    """What safetensors allows beside tensors does no harm."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    content = _file({"__metadata__": {"format": "pt"}, "w": entry}, b"\0" * 4)
    assert tensors.load_arrays("f", content)["w"].tolist() == [0.0]


@given(st.binary(max_size=300))
def test_garbage_is_refused_in_one_way(content: bytes) -> None:
    """Random bytes never raise anything but the one error."""
    with pytest.raises(Unsafe):
        tensors.load_arrays("f", content)


@given(st.lists(st.sampled_from([0, 1, 2, 2**31, 2**39, 2**62, 2**63, 2**64, -1]), max_size=5))
def test_a_shape_loads_or_is_refused(shape: list[int]) -> None:
    """Whatever lengths stand beside a 0, never as an error of another kind, and by both alike."""
    count = math.prod(max(0, length) for length in shape)
    content = _entry("F32", b"\0" * (4 * count if count < 99 else 0), shape)
    outcomes = []
    for load in (tensors.load_arrays, tensors.load_tensors):
        try:
            outcomes.append({name: tuple(one.shape) for name, one in load("f", content).items()})  # type: ignore[attr-defined]
        except Unsafe:
            outcomes.append({})
    assert outcomes[0] == outcomes[1]


@given(place=st.integers(0, len(GOOD) - 1), mask=st.integers(1, 255))
def test_a_flipped_byte_loads_or_is_refused(place: int, mask: int) -> None:
    """Without a signature a change may pass, but never as an error of another kind."""
    changed = bytearray(GOOD)
    changed[place] ^= mask
    try:
        found = tensors.load_arrays("f", bytes(changed))
    except Unsafe:
        return
    assert all(np.isfinite(array).all() for array in found.values())
