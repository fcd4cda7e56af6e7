"""The last samples of a source: bounded, written down exactly, taken back exactly."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nnsec.errors import DigestMismatch
from nnsec.poisoning import SourceWindow
from nnsec.poisoning.window import HEADER, MAGIC, PATTERNS, ROWS, SLACK, SPARE, row_dtype

PLACES = 5


def push(window: SourceWindow, offset: int, row: int = 0) -> None:
    rng = np.random.default_rng([offset, row])
    if rng.random() < 0.03:
        window.establish(int(rng.integers(10)), int(rng.integers(PLACES)), offset % 256, 9.0)
    window.push(
        offset=offset, row=row, label=int(rng.integers(10)), level=int(rng.integers(6)),
        repeated=bool(rng.integers(2)), fingerprint=int(rng.integers(2**63)),
        signature=rng.integers(-127, 128, 24), codes=rng.integers(0, 256, PLACES),
    )  # fmt: skip


def filled(records: int, rows: int = 1) -> SourceWindow:
    window = SourceWindow(PLACES)
    for offset in range(records):
        for row in range(rows):
            push(window, offset, row)
    return window


def seen(window: SourceWindow) -> tuple[int, bytes, bytes]:
    return window.seen, window.rows.tobytes(), window.patterns.tobytes()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, ROWS, ROWS + 1, 1000])
def test_the_newest_rows_count_and_memory_is_bounded(count: int) -> None:
    """At most 128 rows, in order; whatever came before takes no room."""
    window = filled(count)
    assert len(window) == len(window.rows) == min(count, ROWS)
    assert window.rows["offset"].tolist() == list(range(count))[-ROWS:]
    assert window.seen == count
    limit = (ROWS + SPARE + SLACK) * row_dtype(PLACES).itemsize + PATTERNS * 24
    assert window.nbytes <= limit


@pytest.mark.parametrize("count", [0, 7, 200, 700])
def test_a_snapshot_restores_to_the_last_bit(count: int) -> None:
    """And what comes after leads to the same on both sides."""
    window = filled(count)
    again = SourceWindow.restore(window.snapshot())
    assert seen(again) == seen(window)
    assert again.snapshot() == window.snapshot()
    for one in (window, again):
        for offset in range(count, count + 300):
            push(one, offset)
        one.rewind(count + 100)
    assert seen(again) == seen(window)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 4), st.data())
def test_rewinding_gives_back_what_was(records: int, rows: int, data: st.DataObject) -> None:
    """From any record among those that are kept."""
    back = data.draw(st.integers(0, min(records, SPARE // rows)))
    window = filled(records, rows)
    assume(len(window.patterns) < PATTERNS)  # triggers that had to go are not brought back
    before = filled(records - back, rows)
    window.rewind(records - back)
    assert seen(window) == seen(before)
    window.rewind(records + 5)
    assert seen(window) == seen(before)


def test_rewinding_too_far_leaves_fewer_rows_but_no_wrong_ones() -> None:
    """What is not kept any more is not brought back."""
    window = filled(700)
    window.rewind(700 - ROWS - SPARE + 10)
    assert 0 < len(window) < ROWS
    assert window.rows["offset"].max() < 700 - ROWS - SPARE + 10
    window.rewind(0)
    assert len(window) == 0


def test_a_copy_changes_by_itself() -> None:
    """Neither sees what the other takes in or forgets."""
    window = filled(200)
    before, twin = seen(window), window.copy()
    assert seen(twin) == before
    twin.rewind(150)
    push(twin, 500)
    twin.establish(1, 1, 1, 10.0)
    assert seen(window) == before


def test_triggers_are_remembered_once_and_the_oldest_goes() -> None:
    """The figure that one was found by stays, however often it is seen again."""
    window = SourceWindow(PLACES)
    for number in range(PATTERNS + 3):
        window.establish(1, 2, number, 9.0)
        window.establish(1, 2, number, 5.0)
    assert window.patterns["code"].tolist() == list(range(3, PATTERNS + 3))
    assert set(window.patterns["surprise"].tolist()) == {9.0}


def sealed(body: bytes) -> bytes:
    packed = zlib.compress(body, 1)
    return hashlib.sha256(packed).digest() + packed


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: raw[:-1], "differs from its digest"),
        (lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:], "differs from its digest"),
        (lambda _: b"", "differs from its digest"),
        (lambda _: hashlib.sha256(b"x").digest() + b"x", "no snapshot"),
        (lambda _: sealed(b""), "no snapshot"),
        (lambda _: sealed(HEADER.pack(b"other", 5, 0, 0, 0)), "another version"),
        (lambda _: sealed(HEADER.pack(MAGIC, 257, 0, 0, 0)), "another version"),
        (lambda _: sealed(HEADER.pack(MAGIC, 5, 0, 0, PATTERNS + 1)), "another version"),
        (lambda _: sealed(HEADER.pack(MAGIC, 5, 1, 1, 0)), "0 rows of 1"),
        (lambda _: sealed(HEADER.pack(MAGIC, 5, 1, 0, 0) + bytes(53)), "1 rows of 1"),
        (lambda _: sealed(HEADER.pack(MAGIC, 5, 0, 0, 0) + b"abc"), "no snapshot"),
        (lambda _: sealed(bytes(10_000_000)), "longer than any window"),
    ],
)
def test_what_is_no_snapshot_is_refused(spoil: Callable[[bytes], bytes], said: str) -> None:
    """Cut, changed, of another version, or a small file that would fill the memory."""
    assert row_dtype(PLACES).itemsize == 53
    with pytest.raises(DigestMismatch, match=said):
        SourceWindow.restore(spoil(filled(50).snapshot()))
