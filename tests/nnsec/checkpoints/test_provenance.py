"""Provenance: ranges and exclusions hold exactly what was learned from."""

from __future__ import annotations

import hashlib
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.checkpoints import provenance
from nnsec.checkpoints.manifest import Learned
from nnsec.checkpoints.provenance import Batch, Provenance, batch, gather
from nnsec.errors import DigestMismatch, Unsafe

LOG, OTHER = UUID(int=1), UUID(int=2)


def _batch(offset: int, rows: tuple[int, ...] = (0,), partition: int = 0, log: UUID = LOG) -> Batch:
    return batch(log, partition, offset, rows, np.full((len(rows), 2), offset, np.uint8),
                 np.array(rows))  # fmt: skip


def test_nothing_learned_is_an_empty_provenance() -> None:
    """Data that came from no topic leave no positions."""
    assert gather([]) == Provenance()
    assert Provenance().root == hashlib.sha256(b"").hexdigest()


def test_runs_and_exclusions() -> None:
    """Offsets are joined to runs; rows left out of a record are named."""
    found = gather([_batch(7), _batch(3, (0, 2, 5)), _batch(4), _batch(9, partition=1)])
    assert found.learned == (
        Learned(log=LOG, topic="training.samples", partition=0, ranges=((3, 4), (7, 7)),
                exclusions=((3, 1), (3, 3), (3, 4))),
        Learned(log=LOG, topic="training.samples", partition=1, ranges=((9, 9),)),
    )  # fmt: skip
    assert found.rows == 6


def test_order_and_redelivery_change_nothing() -> None:
    """The same rows give the same provenance, however they arrived."""
    parts = [_batch(1), _batch(2, (0, 1)), _batch(1, partition=3), _batch(1, log=OTHER)]
    assert gather(parts) == gather([*reversed(parts), parts[1]])


def test_one_position_has_one_content() -> None:
    """Two contents for a row mean that the topic cannot be trusted."""
    forged = batch(LOG, 0, 1, (0,), np.zeros((1, 2), np.uint8), np.array([9]))
    with pytest.raises(DigestMismatch, match=r"training\.samples/0/1#0"):
        gather([_batch(1), forged])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("row", [provenance.MAX_EXCLUSIONS + 1, 10**17])
def test_rows_that_no_manifest_can_name_are_refused(row: int) -> None:
    """A row number may be anything; what is left out below it is counted before it is listed."""
    with pytest.raises(Unsafe, match=f"{row} rows are left out"):
        gather([Batch(LOG, 0, 1, (row,), (b"",))])


def test_the_root_covers_position_input_and_label() -> None:
    """A change of any of them changes the root."""
    x, labels = np.array([[1, 2]], np.uint8), np.array([3])
    roots = {
        gather([batch(LOG, 0, 1, (0,), x, labels)]).root,
        gather([batch(OTHER, 0, 1, (0,), x, labels)]).root,
        gather([batch(LOG, 1, 1, (0,), x, labels)]).root,
        gather([batch(LOG, 0, 2, (0,), x, labels)]).root,
        gather([batch(LOG, 0, 1, (1,), x, labels)]).root,
        gather([batch(LOG, 0, 1, (0,), x + np.uint8(1), labels)]).root,
        gather([batch(LOG, 0, 1, (0,), x, labels - 4)]).root,
    }
    assert len(roots) == 7


def _rfc(leaves: list[bytes]) -> bytes:
    """The definition of RFC 9162, by recursion."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + _rfc(leaves[:half]) + _rfc(leaves[half:])).digest()


@given(st.integers(1, 70))
def test_the_root_is_that_of_the_standard(count: int) -> None:
    """Promoted odd nodes give the tree that RFC 9162 defines."""
    leaves = [hashlib.sha256(bytes([k])).digest() for k in range(count)]
    assert provenance.merkle_root(leaves) == _rfc(leaves).hex()
