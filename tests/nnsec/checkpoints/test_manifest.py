"""The manifest: read back as written, and refused with the field that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nnsec.checkpoints.manifest import Manifest
from nnsec.errors import Unsafe


def test_a_manifest_is_read_back(manifest: Manifest) -> None:
    """It is JSON that a person can read, one field a line."""
    content = manifest.encode()
    assert Manifest.decode(content) == manifest
    assert b'\n "model": "m",\n' in content


def test_newer_fields_are_passed_over(manifest: Manifest) -> None:
    """A worker reads what a newer one wrote."""
    values = json.loads(manifest.encode()) | {"colour": "blue"}
    assert Manifest.decode(json.dumps(values).encode()) == manifest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": 2}, "format 2; this version reads 1"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"rows_root": "xyz"}, "rows_root"),
        ({"input": {"shape": [1], "dtype": "int8", "range": [0, 1]}}, "input.dtype"),
        ({"created": "yesterday"}, "created"),
        ({"metrics": {"n": 1, "clean_accuracy": 1.5}}, "clean_accuracy"),
    ],
    ids=["format", "zero", "text", "root", "dtype", "time", "share"],
)
def test_a_wrong_field_is_named(manifest: Manifest, fields: dict[str, Any], words: str) -> None:
    """Signed or not, what is no manifest is refused."""
    values = json.loads(manifest.encode()) | fields
    with pytest.raises(Unsafe, match=words):
        Manifest.decode(json.dumps(values).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"seed": NaN}', b'{"seed":1,"seed":2}', b"[" * 100],
    ids=["empty", "list", "nothing", "bytes", "nan", "twice", "deep"],
)
def test_what_is_no_manifest_is_unsafe(content: bytes) -> None:
    """Hostile JSON of every kind ends in one error class that names the file."""
    with pytest.raises(Unsafe, match=r"manifest\.json"):
        Manifest.decode(content)
