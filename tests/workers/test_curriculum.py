"""What may be learned: accepted, less revoked, less learned already; each row once."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from prometheus_client import REGISTRY

from nnsec.adapters.records import Record
from nnsec.checkpoints.manifest import Learned
from nnsec.checkpoints.provenance import MAX_EXCLUSIONS, gather
from nnsec.settings import ModelTable
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from schemas.base import to_millis
from schemas.outcome import MOST_ROWS, Outcome, encode_outcome
from schemas.revocation import Revocation
from schemas.source import Source
from schemas.training import Sample
from tests.conftest import SPEC
from tests.workers.stage import T0, command
from workers.curriculum import Known, lineage, namable
from workers.told import Told

LOG, OTHER = UUID(int=5), UUID(int=6)
OPERATOR = keys.generate()


def outcome(offset: int, rows: tuple[int, ...] = (0,), **changes: Any) -> Record:
    """One record of ``training.accepted``: row r of offset o is an image of 1s, labelled r."""
    shape, value = changes.pop("shape", (1, 8, 8)), changes.pop("value", 1)
    labels = changes.pop("labels", rows)
    sample = Sample(
        model=changes.pop("model", "digits"), id=f"r-{offset}",
        source=changes.pop("source", "s1"), x=np.full((len(rows), *shape), value, np.uint8),
        labels=np.array(labels, np.int64), encoding="binary",
    )  # fmt: skip
    found = Outcome(
        log=changes.pop("log", LOG), partition=changes.pop("partition", 0), offset=offset,
        rows=rows, sample=sample, verdict="accepted", reasons=((),) * len(rows), version="1",
        time=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    value, headers = encode_outcome(found)
    return Record("training.accepted", 0, offset, 0, b"s1", value, headers)


def revocation(offset: int, row: int = 0, *, withdrawn: bool = False) -> Record:
    said = Revocation(
        id=f"{offset}-{withdrawn}", model="digits", source="s1", incident="", log=LOG,
        positions=((0, offset, row),), withdrawn=withdrawn, reason="", time=T0,
    )  # fmt: skip
    return Record("training.revocations", 0, 0, 0, b"", said.encode())


def source(name: str, state: Any, version: int) -> Record:
    said = Source(source=name, state=state, reason="", version=version, time=T0)
    return Record("sources", 0, 0, 0, b"", said.encode())


def told(*records: Record) -> Told:
    found = Told(LOG, OPERATOR.public, {"digits": ModelTable.model_validate(SPEC)})
    for record in records:
        found.apply(record, 7.0)
    return found


def fresh(found: Told, *manifests: Any) -> list[tuple[int, int]]:
    """(offset, row) of what may be learned."""
    positions = found.curricula["digits"].fresh(
        manifests, classes=10, revoked=found.revoked, quarantined=found.quarantined()
    )
    return [(offset, row) for _, _, offset, row in positions]


def manifest(*ranges: tuple[int, int], exclusions: Any = (), log: UUID = LOG) -> Any:
    part = Learned(
        log=log, topic="training.samples", partition=0, ranges=ranges, exclusions=exclusions
    )
    return SimpleNamespace(learned=(part,))


def test_a_row_told_twice_is_one_row() -> None:
    """Delivery is at least once."""
    found = told(outcome(1, (0, 2)), outcome(1, (0, 2)), outcome(0))
    assert fresh(found) == [(0, 0), (1, 0), (1, 2)]
    assert len(found.curricula["digits"]) == 3


def test_rows_of_one_record_may_come_in_parts() -> None:
    """What is released from quarantine comes later; of a row told twice the last counts."""
    found = told(
        outcome(1, (0, 2, 3)), outcome(1, (1,), value=5), outcome(1, (3,), value=7, labels=(8,))
    )
    assert fresh(found) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    curriculum = found.curricula["digits"]
    lesson = curriculum.lesson(curriculum.fresh((), classes=10))
    assert lesson.x[:, 0, 0, 0].tolist() == [1, 5, 1, 7]
    assert lesson.y.tolist() == [0, 1, 2, 8]


def test_what_the_topic_has_no_longer_is_forgotten() -> None:
    """As a trainer that begins anew would not know it either; what comes again is known again."""
    found = told(*(outcome(offset) for offset in range(4)))
    found.forget({0: 2, 1: 9})
    assert fresh(found) == [(2, 0), (3, 0)]
    found.apply(replace(outcome(1), offset=4), 7.0)
    assert fresh(found) == [(1, 0), (2, 0), (3, 0)]


def test_a_row_costs_little_more_than_its_input() -> None:
    """Accepted samples are kept for days: 16 bytes a row beside the 64 of an image of 8 by 8."""
    found = told(outcome(0))
    records = [outcome(offset, tuple(range(2000))) for offset in range(1, 6)]
    tracemalloc.start()
    try:
        for record in records:
            found.apply(record, 7.0)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(found.curricula["digits"]) == 10_001
    assert used < 10_000 * 100


@pytest.mark.parametrize(
    "changes",
    [{"log": OTHER}, {"model": "another"}, {"shape": (1, 4, 4)}],
    ids=["log", "model", "shape"],
)
def test_what_does_not_belong_here_is_left_out(changes: dict[str, Any]) -> None:
    """Positions of another log, and samples that the configured model cannot take."""
    found = told(outcome(1), outcome(2, **changes))
    assert fresh(found) == [(1, 0)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"value": 17}, "input.data"), ({"labels": (-3,)}, "label"), ({"labels": (70_000,)}, "label"),
     ({"rows": (10**17,)}, "nnsec-rows"), ({"rows": (10**19 - 1,)}, "nnsec-rows"),
     ({"rows": (4, 4)}, "nnsec-rows")],
)  # fmt: skip
def test_what_cannot_be_learned_is_passed_over(
    changes: dict[str, Any], field: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else one record on the topic would end every lesson, and the trainer; it is counted."""
    before = REGISTRY.get_sample_value("nnsec_passed_over_total", {"topic": "training.accepted"})
    changes = {"labels": (0,) * len(changes.get("rows", (0,)))} | changes
    found = told(outcome(1), outcome(2, **changes))
    assert fresh(found) == [(1, 0)]
    assert caplog.records[0].message.startswith(f"passed over training.accepted/0/2: {field}: ")
    after = REGISTRY.get_sample_value("nnsec_passed_over_total", {"topic": "training.accepted"})
    assert (after or 0.0) - (before or 0.0) == 1.0


def test_a_float_that_is_none_is_passed_over() -> None:
    """NaN would make the weights NaN."""
    spec = SPEC | {"input": {"shape": [2], "dtype": "float32", "range": [0, 1]}}
    found = Told(LOG, OPERATOR.public, {"digits": ModelTable.model_validate(spec)})
    for offset, value in enumerate((0.5, np.nan, np.inf, 1.5)):
        sample = Sample("digits", "r", "s1", np.full((1, 2), value, np.float32),
                        np.zeros(1, np.int64), "binary")  # fmt: skip
        said = Outcome(LOG, 0, offset, (0,), sample, "accepted", ((),), "1", T0)
        found.apply(Record("training.accepted", 0, offset, 0, b"", *encode_outcome(said)), 7.0)
    assert fresh(found) == [(0, 0)]


def test_the_last_row_that_a_record_can_have_is_learned() -> None:
    """Whatever `[limits] rows` says; and a manifest can name it."""
    found = told(outcome(1, (0, MOST_ROWS - 1), labels=(0, 1)), outcome(2, (MOST_ROWS,)))
    assert fresh(found) == [(1, 0), (1, MOST_ROWS - 1)]
    curriculum = found.curricula["digits"]
    lesson = curriculum.lesson(curriculum.fresh((), classes=10))
    assert len(gather(lesson.batches).learned[0].exclusions) == MOST_ROWS - 2


def test_a_label_that_the_model_lacks_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Where the configuration names no classes, the checkpoint says how many there are."""
    found = told(outcome(1), outcome(2, labels=(10,)), outcome(3, labels=(9,)))
    assert fresh(found) == [(1, 0), (3, 0)]
    assert caplog.messages == ["1 accepted sample left out: the model has 10 classes"]


def test_a_lesson_is_no_longer_than_a_manifest_can_name() -> None:
    """A record of which only a late row is learned costs exclusions; others wait for the next."""
    far = (MAX_EXCLUSIONS // 2 - 10,)
    found = told(*(outcome(offset, far, labels=(1,)) for offset in range(5)))
    curriculum = found.curricula["digits"]
    lesson = curriculum.lesson(namable(curriculum.fresh((), classes=10)))
    assert [part.offset for part in lesson.batches] == [0, 1]
    assert len(lesson.x) == len(lesson.y) == gather(lesson.batches).rows == 2


def test_records_of_which_little_was_accepted_keep_no_others_out() -> None:
    """They come last, and one that does not fit is passed over, so that a lesson is not of them."""
    late, half = (LOG, 0, 1, MAX_EXCLUSIONS - 1), (LOG, 0, 2, MAX_EXCLUSIONS // 2)
    whole = [(LOG, 1, offset, row) for offset in range(30) for row in range(4)]
    assert namable([late, half, *whole]) == [half, *whole]
    assert namable([late]) == [late], "one record always fits"


def test_what_is_revoked_is_not_learned() -> None:
    """Unless the revocation was withdrawn."""
    found = told(outcome(1), outcome(2), revocation(1), revocation(2))
    assert fresh(found) == []
    found.apply(revocation(2, withdrawn=True), 9.0)
    assert fresh(found) == [(2, 0)]
    assert found.revoked_at == 9.0


def test_a_revocation_is_folded_into_those_before() -> None:
    """One record at a time: the trainer reads on while it works, and may have read thousands."""
    found = told(revocation(4))
    before = found.revoked
    found.apply(revocation(5), 8.0)
    found.apply(revocation(4, withdrawn=True), 9.0)
    assert found.revoked is before
    assert (before, found.revoked_at) == ({(LOG, 0, 5, 0)}, 9.0)


def test_nothing_of_a_quarantined_source_is_learned() -> None:
    """Revoked or not yet; an older statement that comes late changes nothing."""
    found = told(
        outcome(1), outcome(2, source="s2"), source("s2", "quarantined", 2),
        source("s2", "trusted", 1),
    )  # fmt: skip
    assert fresh(found) == [(1, 0)]
    found.apply(source("s2", "trusted", 3), 0.0)
    assert fresh(found) == [(1, 0), (2, 0)]


def test_what_an_ancestor_learned_is_not_learned_again() -> None:
    """By the ranges of the manifests, less their exclusions."""
    found = told(*(outcome(offset, (0, 1)) for offset in range(6)))
    first, second = manifest((0, 1)), manifest((3, 4), exclusions=((4, 1),))
    assert fresh(found, first, second) == [(2, 0), (2, 1), (4, 1), (5, 0), (5, 1)]
    assert len(fresh(found, manifest((0, 5), log=OTHER))) == 12


def test_the_manifest_of_a_lesson_holds_exactly_its_rows() -> None:
    """So that it is known as learned after, and nothing else is."""
    found = told(*(outcome(offset, (0, 1, 3)) for offset in (0, 1, 4)), revocation(1, 1))
    curriculum = found.curricula["digits"]
    positions = curriculum.fresh((), classes=10, revoked=found.revoked)
    lesson = curriculum.lesson(positions)
    assert lesson.x.shape == (8, 1, 8, 8)
    assert lesson.y.tolist() == [0, 1, 3, 0, 3, 0, 1, 3]
    provenance = gather(lesson.batches)
    assert provenance.rows == 8
    known = Known(provenance.learned)
    rows = [(LOG, 0, offset, row) for offset in range(6) for row in range(4)]
    assert [position for position in rows if position in known] == positions


def test_a_lineage_ends_where_it_cannot_be_seen() -> None:
    """At the first checkpoint without a parent that is there and older."""

    def child(parent: int | None) -> Any:
        return SimpleNamespace(parent=None if parent is None else SimpleNamespace(version=parent))

    manifests = {1: child(None), 2: child(1), 4: child(2), 5: child(3), 6: child(6)}
    assert lineage(4, manifests) == (manifests[4], manifests[2], manifests[1])
    assert lineage(5, manifests) == (manifests[5],)
    assert lineage(6, manifests) == (manifests[6],)


def test_own_orders_are_remembered() -> None:
    """Those of others, and what is no command, are not the trainer's to judge."""
    own = sign_command(command("promote", "2"), OPERATOR)
    other = sign_command(command("promote", "3"), keys.generate())
    at = to_millis(T0)
    found = told(
        *(Record("commands", 0, 0, at, b"", value) for value in (own, other, None, b"nonsense"))
    )
    assert found.commands == {"c-promote-2"}
    assert found.changes == 0


def test_what_cannot_be_read_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """With a line that says where."""
    bad = (Record("training.accepted", 3, 9, 0, b"", b"nonsense"),
           Record("sources", 0, 4, 0, b"", b"{}"))  # fmt: skip
    found = told(outcome(1), *bad)
    assert fresh(found) == [(1, 0)]
    assert [line.message.split(":")[0] for line in caplog.records] == [
        "passed over training.accepted/3/9", "passed over sources/0/4",
    ]  # fmt: skip
