from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import parse_time
from schemas.errors import SchemaError
from schemas.summary import INPUT_ROW, ROWS, Summary

FIELDS: dict[str, Any] = {
    "log": UUID("6f1f2f5e-7c39-4b43-8f5c-0d5e8c1b2a3d"),
    "topic": "inference.inputs",
    "model": "digits",
    "model_version": "1",
    "time": parse_time("2026-01-02T03:04:05Z"),
    "subjects": ("app-7", "app-8"),
}


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_rows_survive(kind: str) -> None:
    """Each kind of row comes out as it went in, largest values included."""
    rows = np.zeros(3, ROWS[kind])
    rows["offset"] = [0, 5, 2**63 - 1]
    rows["row"] = 2**32 - 1
    rows["subject"] = [0, 1, 1]
    sent = Summary.pack(rows, kind=kind, **FIELDS)
    found = Summary.decode(sent.encode()).unpack()
    assert found.dtype == ROWS[kind]
    assert found.tobytes() == rows.tobytes()
    assert rows.dtype.itemsize <= 44


def test_no_rows_are_none() -> None:
    """An empty summary is one."""
    assert Summary.pack(np.zeros(0, INPUT_ROW), kind="input", **FIELDS).unpack().size == 0


@pytest.mark.parametrize(
    ("rows", "match"),
    [("=?", "base64"), ("AAAA", "whole rows"), ("é", "base64")],
)
def test_bytes_that_are_no_rows_are_refused(rows: str, match: str) -> None:
    """Text that is not base64, and bytes that are cut, name the field."""
    with pytest.raises(SchemaError, match=match) as caught:
        Summary(rows=rows, kind="input", **FIELDS).unpack()
    assert caught.value.field == "rows"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [("subject", 2, "not listed"), ("score", np.nan, "score"), ("p_value", np.inf, "p_value")],
)
def test_rows_that_say_nothing_true_are_refused(name: str, value: float, match: str) -> None:
    """A subject must be listed, a figure finite."""
    rows = np.zeros(1, INPUT_ROW)
    rows[name] = value
    with pytest.raises(SchemaError, match=match):
        Summary.pack(rows, kind="input", **FIELDS).unpack()


@given(st.binary(max_size=120))
def test_bytes_become_rows_or_an_error(junk: bytes) -> None:
    """No bytes raise anything but a SchemaError."""
    summary = Summary(rows=base64.b64encode(junk).decode(), kind="label", **FIELDS)
    try:
        rows = summary.unpack()
    except SchemaError:
        return
    assert rows.tobytes() == junk
