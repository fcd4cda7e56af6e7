"""What a record changes in the view, and what one that cannot be read does not."""

from __future__ import annotations

import logging

import pytest

from nnsec.adapters.records import Record
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from tests.workers.stage import RELEASE, dismissed, incident, statement
from workers.changes import EXPIRY_MS, Change, counts, of
from workers.store import Keys

NAMES = Keys("p:")


def record(topic: str, value: bytes | None, **changes: object) -> Record:
    values = {"partition": 2, "offset": 7, "timestamp": 1000, "key": b"k", "headers": ()} | changes
    return Record(topic=topic, value=value, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("incidents", None), ("incidents", b"nonsense"), ("sources", b"{}"), ("models", b"{}"),
        ("models", sign_statement(statement(1, 1), keys.generate())),
    ],
)  # fmt: skip
def test_what_cannot_be_read_moves_only_the_place(
    topic: str, value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """So that the view goes on after it; one line says where it was."""
    with caplog.at_level(logging.WARNING):
        assert of(record(topic, value), NAMES, (RELEASE.public,)) == Change("skip", f"{topic}/2", 7)
    assert [line.message.split(":")[0] for line in caplog.records] == [f"left out {topic}/2/7"]


def test_a_finished_incident_expires_by_the_time_of_its_record() -> None:
    """Not by the clock of whoever rebuilds the view."""
    open_ = of(record("incidents", incident().encode()), NAMES, ())
    over = of(record("incidents", dismissed(incident()).encode()), NAMES, ())
    assert open_.values[2:5] == ("1000", "", "1")
    assert over.values[3] == str(1000 + EXPIRY_MS)
    assert over.values[5:9] == ("open", "dismissed", "key", "a drill")


@pytest.mark.parametrize(("stamp", "shown"), [(2**63 - 1, 253402300799000), (-(2**63), 0), (-1, 0)])
def test_a_time_that_there_is_not_is_the_nearest_that_there_is(stamp: int, shown: int) -> None:
    """Writers may stamp a record with any 64 bits, and Redis takes no more than 63 of an expiry."""
    over = of(record("incidents", dismissed(incident()).encode(), timestamp=stamp), NAMES, ())
    assert over.values[2:4] == (str(shown), str(shown + EXPIRY_MS))


def test_evidence_alone_is_no_transition() -> None:
    """Its record has a version of its own, and adds no line to the log."""
    more = incident().model_copy(update={"version": 2})
    assert of(record("incidents", more.encode()), NAMES, ()).values[4] == "0"


def test_samples_are_counted_by_source() -> None:
    """Rows, not records; what names no rows or source counts for nothing."""
    rows = (("nnsec-rows", b"0,3"),)
    batch = [
        record("training.quarantine", b"", key=b"a", headers=rows),
        record("training.quarantine", b"", key=b"b", headers=(("Nnsec-Rows", b"1"),)),
        record("training.quarantine", b"", key=b"a", headers=rows),
        record("training.quarantine", b"", key=None, headers=rows),
        record("training.quarantine", b"", key=b"c", offset=9),
    ]  # fmt: skip
    week = str(1000 + 7 * 24 * 3600 * 1000)
    assert counts(batch, NAMES, 5) == Change(
        "count", "training.quarantine/2", 9,
        ("p:sources:training.quarantine/2", "p:source:a", "p:source:b", "p:source:a"),
        ("quarantined", "5", "2", "7", week, "1", "7", week, "2", "7", week),
    )  # fmt: skip
    assert counts(batch[-1:], NAMES, 5) == Change("skip", "training.quarantine/2", 9)
