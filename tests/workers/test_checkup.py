"""`nnsec doctor` finds what is wrong, says what to do, and fails only for what stops the work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from nnsec.adapters.declaration import declare
from nnsec.adapters.positions import Positions, commit_start
from nnsec.adapters.probes import Probes
from nnsec.adapters.publisher import publisher
from nnsec.adapters.records import Out
from nnsec.errors import NNSecError
from nnsec.settings import Settings, parse
from nnsec.trust import keys, statements
from schemas.action import Action
from schemas.alert import Subject
from schemas.model_statement import ModelStatement
from streams import evidence, roles
from tests.conftest import MadeCheckpoint
from tests.workers.conftest import Nnsec
from workers import checkup, checkup_logs, checkup_metrics, remediation
from workers.checkup import examine
from workers.findings import Finding

NOW = datetime.now(UTC)


def by(found: Sequence[Finding], about: str) -> Finding:
    (one,) = [finding for finding in found if finding.about == about]
    return one


def changed(settings: Settings, **tables: dict[str, object]) -> Settings:
    values = settings.model_dump()
    for table, keys_ in tables.items():
        values[table] |= keys_
    return parse(values)


async def release(settings: Settings, made: MadeCheckpoint) -> None:
    """Say that version 1 serves."""
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=made.digest, reason="first",
        incident="", issued=NOW, expires=NOW + timedelta(hours=1),
    )  # fmt: skip
    value = statements.sign_statement(statement, keys.load_private(made.release_key))
    async with publisher(settings) as publish:
        await publish(Out("models", value, b"digits"))


async def test_a_whole_installation_is_well(
    settings: Settings, valkey: str, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """With topics, keys, a released checkpoint, groups and processes, nothing fails."""
    given = checkpoint.configure(settings, tmp_path)
    await declare(given, now=NOW)
    await release(given, checkpoint)
    for role, names in checkup.GROUPS.items():
        await commit_start(given, role, names)
    async with Probes(given, "view", lambda: (), folder=tmp_path / "run"):
        found = await examine(given, tmp_path)
    assert [one for one in found if one.status != "ok"] == []
    assert by(found, "models").text == "digits: version 1 serves, epoch 1"
    assert by(found, "registry").text == "digits: 1 version, newest 1"
    assert by(found, "group " + given.kafka.prefix + "score").text == "0 records behind"


async def test_missing_topics_are_made_by_whom_it_says(settings: Settings, tmp_path: Path) -> None:
    """Missing topics are a warning, a failure if nobody makes them; nothing is made here."""
    found = await examine(settings, tmp_path)
    assert by(found, "topics").status == "warn"
    assert "nnsec topics --declare" in by(found, "topics").advice
    strict = await examine(changed(settings, kafka={"declare": False}), tmp_path)
    assert by(strict, "topics").status == "fail"
    assert not any(one.about.startswith("group") for one in strict)


async def test_topics_that_do_not_fit_are_named(settings: Settings, tmp_path: Path) -> None:
    """Fewer partitions than configured stop the work."""
    await declare(settings, now=NOW)
    more = changed(settings, kafka={"partitions": {"inputs": 6, "control": 1}})
    (finding,) = [one for one in await examine(more, tmp_path) if one.about == "broker"]
    assert finding.status == "fail"
    assert "4 partitions, needs 6" in finding.text


async def test_a_model_without_a_statement_waits(
    settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """A configured model that nobody released, or by a key that is not trusted, is a failure."""
    given = checkpoint.configure(settings, tmp_path)
    await declare(given, now=NOW)
    assert by(await examine(given, tmp_path), "models").status == "fail"
    await release(given, checkpoint)
    other = keys.write_new(tmp_path / "other")
    assert other.id
    strange = changed(given, trust={"release_keys": [str(tmp_path / "other.pub")]})
    finding = by(await examine(strange, tmp_path), "models")
    assert finding.advice == "run `nnsec checkpoint release --model digits …`"
    bare = changed(strange, registry={"url": str(tmp_path / "empty")})
    (finding,) = await checkup.models(bare)
    assert finding.advice == "run `nnsec checkpoint create --model digits … --release`"


async def test_a_group_that_is_behind_or_outside_its_log_is_found(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that never ran, that lags, and that committed beyond the end are told apart."""
    await declare(settings, now=NOW)
    name = settings.kafka.prefix + "evidence"

    async def found() -> Finding:
        return by(await checkup.groups(settings), f"group {name}")

    assert (await found()).text == "it never ran"
    await commit_start(
        changed(settings, kafka={"start_at": "earliest"}), "evidence", ("summaries",)
    )
    async with publisher(settings) as publish:
        await publish(*(Out("summaries", b"x", b"m") for _ in range(3)))
    monkeypatch.setattr(checkup, "LAG", 2)
    assert (await found()).text == "3 records behind"
    assert (await found()).status == "warn"
    async with Positions(settings, "evidence", ("summaries",)) as positions:
        assert await positions.commit({("summaries", 0): 99})
    assert (await found()).status == "fail"
    assert "outside" in (await found()).text
    assert "docs/operations.md" in (await found()).advice


async def test_remediation_without_work_is_well(settings: Settings) -> None:
    """It commits nothing before its first record; after that it never ran if it did not."""
    await declare(settings, now=NOW)

    async def found() -> Finding:
        return by(await checkup.groups(settings), f"group {settings.kafka.prefix}remediation")

    assert ((await found()).status, (await found()).text) == ("ok", "nothing came yet")
    async with publisher(settings) as publish:
        await publish(Out("commands", b"x", b"digits"))
    assert ((await found()).text, (await found()).advice) == (
        "it never ran", "run `nnsec worker remediation`",
    )  # fmt: skip


async def test_dead_letters_of_the_last_hour_are_counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By error class; older ones are not counted."""
    await declare(settings, now=NOW)
    assert [one.status for one in await checkup.dead_letters(settings)] == ["ok"]
    async with publisher(settings) as publish:
        for name in (b"SchemaError", b"UnknownModel", b"SchemaError"):
            await publish(Out("dead-letters", b"x", b"k", (("nnsec-error-class", name),)))
    (told,) = await checkup.dead_letters(settings)
    assert told.status == "warn"
    assert told.text == "3 in the last hour: SchemaError 2, UnknownModel 1"
    assert f"{settings.kafka.prefix}dead-letters" in told.advice
    monkeypatch.setattr(checkup_logs, "PERIOD", timedelta(hours=-1))
    assert [one.status for one in await checkup.dead_letters(settings)] == ["ok"]


async def test_a_halted_automation_is_told(settings: Settings, tmp_path: Path) -> None:
    """Since when, by whom and why; a model's own switch counts as it does for the workers."""
    spec = {"architecture": "a:b", "input": {"shape": [4]}}
    given = parse(settings.model_dump() | {"models": {"a": spec, "b": spec}})
    await declare(given, now=NOW)

    async def after(kind: str, model: str, seconds: int) -> list[tuple[str, str]]:
        receipt = Action(
            id=f"command-{seconds}", action=kind, model=model, incident=None,
            subject=Subject(kind="model", id=model), outcome="done", automatic=False,
            by="0123456789abcdefgh", reason="a drill", time=NOW + timedelta(seconds=seconds),
            version=1,
        )  # fmt: skip
        async with publisher(given) as publish:
            await publish(Out("actions", receipt.encode(), model.encode(), partition=0))
            await publish(Out("actions", b"hostile", b"a", partition=0))
        return [
            (one.status, one.text.partition(" since ")[0])
            for one in await checkup.automation(given)
        ]

    assert await checkup.automation(given) == [Finding("automation", "ok", "not halted")]
    assert await after("halt", "a", 1) == [("warn", "halted for a")]
    (told,) = await checkup.automation(given)
    assert told.text.endswith("Z by 0123456789abcdef…: a drill")
    assert f"{NOW + timedelta(seconds=1):%H:%M:%S}" in told.text
    assert await after("halt", "*", 2) == [("warn", "halted for *")]
    assert await after("resume", "b", 3) == [("warn", "halted for * except b")]
    assert await after("resume", "*", 4) == [("ok", "not halted")]
    assert "automation" in {one.about for one in await examine(given, tmp_path)}


def test_keys_are_read(tmp_path: Path) -> None:
    """A missing key fails, a private one that others can read is a warning."""
    keys.write_new(tmp_path / "release")
    given = parse(
        {
            "trust": {"release_keys": [f"{tmp_path}/release.pub", f"{tmp_path}/gone.pub"]},
            "remediation": {"release_key": f"{tmp_path}/release"},
        }
    )
    status = [(one.about, one.status) for one in checkup.check_keys(given)]
    assert status == [
        ("trust.release_keys", "ok"), ("trust.release_keys", "fail"),
        ("trust.operator_keys", "warn"), ("remediation.release_key", "ok"),
    ]  # fmt: skip
    (tmp_path / "release").chmod(0o644)
    finding = checkup.check_keys(given)[-1]
    assert (finding.status, finding.advice) == ("warn", f"run `chmod 600 {tmp_path}/release`")


async def test_an_empty_registry_or_configuration_says_what_to_make(tmp_path: Path) -> None:
    """Without models or checkpoints the advice is the command that makes them."""
    none = parse({"registry": {"url": str(tmp_path)}})
    assert "[models.NAME]" in (await checkup.registry(none))[0].advice
    spec = {"architecture": "a:b", "input": {"shape": [4]}}
    some = parse({"registry": {"url": str(tmp_path)}, "models": {"m": spec}})
    assert "checkpoint create --model m" in (await checkup.registry(some))[0].advice


async def test_processes_that_wait_or_are_gone_are_told_apart(tmp_path: Path) -> None:
    """A process that is not ready says why; a file without a process is named."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other-1.json").write_text("{}")
    assert "nnsec up" in (await checkup.processes(tmp_path))[0].advice
    gone = {"role": "view", "pid": 1, "address": "127.0.0.1:1"}
    (tmp_path / "run" / "view-1.json").write_text(json.dumps(gone))
    async with Probes(Settings(), "stream", lambda: ("no model",), folder=tmp_path / "run"):
        found = await checkup.processes(tmp_path)
    assert [one.text for one in found] == ["not ready: no model", "does not answer on 127.0.0.1:1"]
    assert "view-1.json" in found[1].advice


async def test_more_than_the_budget_expects_is_a_warning(tmp_path: Path) -> None:
    """As the processes here count it; where none judges nothing is said of it."""
    assert await checkup.budget(tmp_path) == []
    registry = CollectorRegistry()
    gauge = Gauge(checkup_metrics.TRAFFIC, "…", ["model", "kind"], registry=registry)
    run = tmp_path / "run"
    async with Probes(Settings(), "stream", lambda: (), folder=run, registry=registry):
        assert await checkup.budget(tmp_path) == []
        gauge.labels("digits", "inputs").set(1.0)
        assert [one.status for one in await checkup.budget(tmp_path)] == ["ok"]
        gauge.labels("digits", "samples").set(12.34)
        gauge.labels("faces", "windows").set(2)
        found = await checkup.budget(tmp_path)
    assert [(one.status, one.text.split(" that")[0], one.advice) for one in found] == [
        ("warn", "digits: 12.3 times the samples", "raise [budget] expected_samples_per_day"),
        ("warn", "faces: 2 times the windows", "raise [budget] expected_inputs_per_day"),
    ]
    # It must be the gauge that the evidence sets.
    assert evidence.TRAFFIC._name == checkup_metrics.TRAFFIC


async def test_redis_must_answer_and_be_new_enough(
    settings: Settings, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old server fails, one that is away too, with a message."""
    assert (await checkup.redis(settings))[0].status == "ok"
    monkeypatch.setattr(checkup, "OLDEST_REDIS", (99, 0))
    assert (await checkup.redis(settings))[0].status == "fail"
    away = changed(settings, redis={"url": "redis://127.0.0.1:1"})
    with pytest.raises(NNSecError, match="Redis"):
        await checkup.redis(away)


async def test_what_does_not_answer_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker and a store that are away fail in time, and the rest is looked at all the same."""
    monkeypatch.setattr(checkup, "SECONDS", 0.5)
    away = parse(
        {"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "redis": {"url": "redis://127.0.0.1:1"}}
    )
    found = await asyncio.wait_for(examine(away, tmp_path), 10)
    assert by(found, "broker").text.startswith("127.0.0.1:1 does not answer: ")
    assert "Connect call failed" in by(found, "broker").text
    assert by(found, "redis").status == "fail"
    assert by(found, "processes").status == "warn"


def test_the_command_ends_with_1_if_anything_failed(nnsec: Nnsec) -> None:
    """People get lines with advice, programs the same as JSON."""
    shown = nnsec("doctor")
    assert shown.status == 1
    assert "nnsec up" in shown.out
    assert "→" in shown.out
    told = json.loads(nnsec("doctor", "--json").out)
    assert {one["status"] for one in told} == {"fail", "warn"}
    assert set(told[0]) == {"about", "status", "text", "advice"}


@pytest.mark.parametrize("role", roles.ROLES)
def test_groups_are_those_of_the_roles(role: str) -> None:
    """What is looked at is what the roles read, of every role there is."""
    assert checkup.GROUPS[role] == tuple(roles.topics(role))


def test_no_group_is_forgotten_or_invented() -> None:
    """Roles of the streams, and remediation."""
    assert checkup.GROUPS.keys() == roles.ROLES.keys() | {"remediation"}
    assert checkup.GROUPS["remediation"] == remediation.TOPICS
