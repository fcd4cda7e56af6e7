"""Taint: own positions, ancestors, and what cannot be shown to be clean."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from nnsec.checkpoints.manifest import (
    CalibrationFigures,
    DriftReference,
    InputSpec,
    Manifest,
    Metrics,
    Parent,
)
from nnsec.checkpoints.provenance import Batch, Position, batch, gather
from nnsec.checkpoints.taint import Revoked, newest_clean, revoked_positions, tainted
from schemas.revocation import Revocation

LOG, OTHER = UUID(int=1), UUID(int=2)
POISON: Position = (LOG, 0, 5, 2)
MANIFEST_VALUES: dict[str, Any] = {
    "model": "m", "architecture": "nnsec.models:small_cnn",
    "input": InputSpec(shape=(1, 8, 8), dtype="uint8", range=(0.0, 16.0)), "classes": ("a", "b"),
    "reference_rows": 100, "reference_digest": "0" * 64, "detectors": ("energy",),
    "calibration": CalibrationFigures(
        n=40, alpha=0.1, smallest_p=1 / 41, false_positive_rate=(0.02, 0.2),
        smallest_attack_share=0.3, thresholds=(1.0,), rates=(0.1,),
    ),
    "metrics": Metrics(n=40, clean_accuracy=0.9),
    "drift": DriftReference(n=40, class_rates=(0.5, 0.5), confidence=((0.1, 0.6),)),
    "seed": 0, "created": datetime(2026, 1, 1, tzinfo=UTC),
}  # fmt: skip


def _batch(offset: int, rows: tuple[int, ...]) -> Batch:
    return batch(LOG, 0, offset, rows, np.zeros((len(rows), 1)), np.zeros(len(rows), np.int64))


def _manifest(
    version: int, *batches: Batch, parent: int | None = None, reference: Batch | None = None
) -> Manifest:
    found = gather(batches)
    values: dict[str, Any] = {
        "version": version, "learned": found.learned, "rows": found.rows, "rows_root": found.root,
        "parent": None if parent is None else Parent(version=parent, digest=f"{parent:064x}"),
        "reference_learned": gather([reference] if reference else []).learned,
    }  # fmt: skip
    return Manifest(**(MANIFEST_VALUES | values))


CHAIN = {
    1: _manifest(1),
    2: _manifest(2, _batch(5, (0, 2)), parent=1),
    3: _manifest(3, _batch(9, (0,)), parent=2),
    4: _manifest(4, _batch(9, (0,)), parent=1),
}
DIGESTS = {version: f"{version:064x}" for version in CHAIN}


def test_own_positions_and_ancestors_count() -> None:
    """The poisoned version and its child are tainted; their cousin is not."""
    reasons = tainted(CHAIN, {POISON}, DIGESTS)
    assert sorted(reasons) == [2, 3]
    assert "training.samples/0/5#2" in reasons[2]
    assert "version 2" in reasons[3]
    assert newest_clean(CHAIN, {POISON}, DIGESTS) == 4
    assert newest_clean(CHAIN, {POISON}, DIGESTS, exclude={4}) == 1


@pytest.mark.parametrize(
    "position",
    [
        (OTHER, 0, 5, 2), (LOG, 1, 5, 2), (LOG, 0, 4, 2), (LOG, 0, 6, 2), (LOG, 0, 5, 1),
    ],
    ids=["another log", "another partition", "before", "after", "an excluded row"],
)  # fmt: skip
def test_what_was_not_learned_taints_nothing(position: Position) -> None:
    """A position is exact in all its parts."""
    assert tainted(CHAIN, {position}, DIGESTS) == {}


def test_reference_data_taint_too() -> None:
    """Detectors calibrated on poison are no better than weights trained on it, nor inherited so."""
    chain = {1: _manifest(1, reference=_batch(5, (0, 2))), 2: _manifest(2, parent=1)}
    reasons = tainted(chain, {POISON})
    assert "calibrated on 1 revoked samples" in reasons[1]
    assert "version 1" in reasons[2]


def test_positions_of_another_topic_taint_nothing() -> None:
    """A revocation is about ``training.samples``, whatever else a manifest may name."""
    part = CHAIN[2].learned[0].model_copy(update={"topic": "elsewhere"})
    manifest = CHAIN[2].model_copy(update={"learned": (part,)})
    assert tainted({1: CHAIN[1], 2: manifest}, {POISON}) == {}


def test_rows_of_unknown_standing_taint() -> None:
    """Rows above the highest one learned from count as learned, so that doubt never looks clean."""
    assert sorted(tainted(CHAIN, {(LOG, 0, 5, 3)}, DIGESTS)) == [2, 3]


def test_without_revocations_nothing_is_tainted() -> None:
    """Even where a parent is gone."""
    assert tainted({3: CHAIN[3]}, ()) == {}
    assert newest_clean(CHAIN, ()) == 4


@pytest.mark.parametrize(
    ("manifests", "digests", "words"),
    [
        ({3: CHAIN[3]}, None, "cannot be verified"),
        ({2: CHAIN[1], 3: CHAIN[3]}, {2: "0" * 64, 3: "3" * 64}, "is not the one"),
        ({3: _manifest(3, parent=3)}, None, "not older"),
        ({3: _manifest(3, parent=4), 4: _manifest(4, parent=3)}, None, "not older"),
    ],
    ids=["missing", "replaced", "its own parent", "a cycle"],
)
def test_an_ancestry_that_cannot_be_seen_taints(
    manifests: dict[int, Manifest], digests: dict[int, str] | None, words: str
) -> None:
    """Once anything is revoked, a checkpoint must show where it comes from."""
    reasons = tainted(manifests, {POISON}, digests)
    assert words in reasons[3]


def _revocation(
    positions: tuple[tuple[int, int, int], ...], withdrawn: bool, name: str
) -> Revocation:
    return Revocation(
        id=name, model="m", source="s", incident="i", log=LOG, positions=positions,
        withdrawn=withdrawn, reason="test", time=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def test_the_last_word_on_a_position_counts() -> None:
    """A withdrawn revocation releases, a later one revokes again."""
    both = ((0, 5, 2), (0, 6, 0))
    log = [_revocation(both, False, "r1"), _revocation(both[:1], True, "r2")]
    assert revoked_positions(log) == {(LOG, 0, 6, 0)}
    again = _revocation(both[:1], False, "r3")
    assert revoked_positions([*log, again]) == {POISON, (LOG, 0, 6, 0)}


def test_a_revocation_said_again_does_not_undo_its_withdrawal() -> None:
    """A worker that was paused before it said one may say it when another has withdrawn it."""
    place = ((0, 5, 2),)
    said, withdrawn = _revocation(place, False, "r1"), _revocation(place, True, "r2")
    assert revoked_positions([said, withdrawn, said]) == frozenset()


def test_a_record_costs_no_more_when_many_came_before() -> None:
    """What was folded is changed where it lies, not copied, by a release too."""
    revoked = Revoked()
    positions = revoked.positions
    for k in range(3):
        revoked.apply(_revocation(((0, k, 0), (0, k, 1)), False, f"r{k}"))
    revoked.apply(_revocation(((0, 1, 0), (0, 9, 0)), True, "w"))
    assert revoked.positions is positions
    assert positions == {(LOG, 0, k, row) for k in range(3) for row in range(2)} - {(LOG, 0, 1, 0)}


def test_nothing_clean_is_none() -> None:
    """There may be no version to go back to."""
    assert newest_clean({2: CHAIN[2]}, {POISON}) is None
