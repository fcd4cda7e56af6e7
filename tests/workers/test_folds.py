"""What remediation knows: folds that take everything twice, and leave out what is not valid."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nnsec.adapters.records import Record
from nnsec.errors import Expired
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.statements import fold, sign_statement
from schemas.base import to_millis
from streams.control import Control
from tests.workers import stage as words
from tests.workers.stage import RELEASE, T0, Stage, configured, incident, statement
from workers import changes
from workers.board import SILENT
from workers.demo.ledger import Ledger
from workers.store import Keys


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


IN_TIME, LATE = timedelta(hours=1, milliseconds=-1), timedelta(hours=1)
EXPIRING = {
    "in time": ([("prepare", IN_TIME), ("activate", IN_TIME)], 2),
    "all too late": ([("prepare", LATE), ("activate", LATE)], 1),
    "activated too late": ([("prepare", IN_TIME), ("activate", LATE)], 1),
    "prepared too late": ([("prepare", LATE), ("activate", IN_TIME)], 2),
    "only activated, too late": ([("activate", LATE)], 1),
    "said anew": ([("prepare", IN_TIME), ("activate", LATE), ("activate", IN_TIME)], 2),
}
"""Statements of epoch 2, each with how long after its issue the broker took it; and what serves."""


@pytest.mark.parametrize(("said", "serves"), EXPIRING.values(), ids=EXPIRING)
def test_all_readers_agree_on_what_reached_the_log_too_late(
    stage: Stage, said: list[tuple[Any, timedelta]], serves: int
) -> None:
    """Whenever they read it: remediation, streams, `doctor`, `release`, the view and the demo."""
    stage.now += timedelta(days=999)
    trusted, ledger = (RELEASE.public,), Ledger((RELEASE.public,))
    control = Control(stage.settings, UUID(int=1), Loaded())  # type: ignore[arg-type]
    first = [(1, "prepare", timedelta(0)), (1, "activate", timedelta(0))]
    records = [
        Record("models", 0, 0, to_millis(T0 + after), b"digits",
               sign_statement(statement(epoch, epoch, phase=phase), RELEASE))
        for epoch, phase, after in (*first, *((2, *one) for one in said))
    ]  # fmt: skip
    shown = []
    for record in records:
        stage.site.learn(record)
        control.apply(record)
        asyncio.run(control.load_wanted())
        shown.append(changes.of(record, Keys(""), trusted).operation)
        with contextlib.suppress(Expired):
            ledger.read(record, 0.0)
    late = [after == LATE for _, after in said]
    assert shown == ["model", "model", *("skip" if one else "model" for one in late)]
    assert stage.site.standings == fold(records, trusted).models
    found = [stage.site.standings["digits"].activated, control.active("digits"),
             ledger.models["digits"]]  # fmt: skip
    assert [one.epoch for one in found if one is not None] == [serves] * 3


class Loaded:
    """Checkpoints that are all there."""

    def prepare(self, model: str, version: int, digest: str) -> None:
        """Load one."""

    def retain(self, model: str, kept: frozenset[tuple[int, str]]) -> None:
        """Drop the others."""


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
