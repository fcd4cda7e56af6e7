"""What remediation knows: folds that take everything twice, and leave out what is not valid."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from tests.workers import stage as words
from tests.workers.stage import Stage, configured, incident, statement
from workers.board import SILENT


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(configured(Settings(), tmp_path))


@pytest.mark.parametrize(
    "topic",
    ["actions", "models", "sources", "models.status", "incidents", "training.revocations"],
)
def test_what_cannot_be_read_is_left_out(
    stage: Stage, caplog: pytest.LogCaptureFixture, topic: str
) -> None:
    """With one line that says where; the rest goes on."""
    with caplog.at_level(logging.WARNING):
        stage.site.learn(stage.record(topic, b"nonsense"))
    assert [line.message.split(":")[0] for line in caplog.records] == [f"left out {topic}/0/0"]


def test_statements_of_strangers_and_of_the_past_change_nothing(stage: Stage) -> None:
    """Only the highest epoch that a release key signed counts."""
    stage.serve(2, 5)
    stranger = sign_statement(statement(9, 6), keys.generate())
    old = sign_statement(statement(1, 4), words.RELEASE)
    for value in (stranger, old, None):
        stage.site.learn(stage.record("models", value))
    active = stage.site.standings["digits"].activated
    assert active is not None
    assert (active.epoch, active.version) == (5, 2)


def test_reports_of_the_dead_do_not_count(stage: Stage) -> None:
    """At the start the log holds those of workers that are gone; how old they are decides."""
    old = words.status((0, 1), epoch=1)
    stage.tape.append(stage.record("models.status", old.encode()))
    stage.now += timedelta(seconds=SILENT + 1)
    stage.start()
    assert stage.site.board.live(stage.site.clock()) == ()
    stage.site.learn(stage.record("models.status", old.encode()))
    assert len(stage.site.board.live(stage.site.clock())) == 1
    stage.site.learn(stage.record("models.status", None))  # a tombstone of compaction
    assert len(stage.site.board.live(stage.site.clock())) == 1


@pytest.mark.parametrize("skew", [timedelta(seconds=-20), timedelta(days=-1), timedelta(hours=1)])
def test_a_worker_whose_clock_is_wrong_is_alive(stage: Stage, skew: timedelta) -> None:
    """What is read as it comes was said just now; a clock behind by 15 s is no silence."""
    now, stage.now = stage.now, stage.now + skew
    record = stage.record("models.status", words.status((0, 1), epoch=1).encode())
    stage.now = now
    stage.site.learn(record)
    assert len(stage.site.board.live(stage.site.clock())) == 1
    assert stage.site.board.live(stage.site.clock() + SILENT) == ()


@pytest.mark.parametrize("model", ["digits", "m", "a longer name/with é"])
def test_a_model_lies_where_its_records_are_put(stage: Stage, model: str) -> None:
    """As the producers' partitioner says, so that one worker has all of it."""
    from aiokafka.partitioner import DefaultPartitioner

    stage.site.partitions = {"incidents": 6}
    there = list(range(6))
    assert stage.site.place(model) == DefaultPartitioner()(model.encode(), there, there)


def test_an_older_record_of_an_incident_is_outdated(stage: Stage) -> None:
    """The newest counts, whichever comes first."""
    first = incident()
    newer = first.model_copy(update={"version": 2, "state": "resolved"})
    for one in (newer, first):
        stage.site.learn(stage.record("incidents", one.encode()))
    assert stage.site.outdated(first)
    assert not stage.site.outdated(newer)
    assert stage.site.finished(first.id)
    assert not stage.site.finished(UUID(int=99))
