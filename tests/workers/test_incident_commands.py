"""What operators type: incidents, quarantine, rebuild; against a real broker and store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis.asyncio as redis
from typer.testing import CliRunner, Result

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError, TransientError
from nnsec.incidents import ActionSeen, stamped, step
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import open_command
from schemas.action import Action
from schemas.command import Command
from schemas.incident import Incident
from schemas.source import Source
from tests.workers.stage import OPERATOR, T0, configured, dismissed, incident
from workers import store, transitions, view
from workers.cli import app
from workers.commands import orders
from workers.demo.stage import to_toml
from workers.embedded import Store, free_port

EVIL = "s\x1b[31m[red]1"


def with_action(one: Incident) -> Incident:
    """The incident after an action on it was proposed."""
    subject = one.subjects[0].subject
    action = Action(
        id="a-1", action="quarantine", model=one.model, incident=one.id, subject=subject,
        outcome="awaiting_approval", automatic=False, by="\x1b[Hwho", reason="[bold]why",
        time=T0,
    )  # fmt: skip
    found = step(one, ActionSeen(action), log=one.id).incident
    assert found is not None
    return found


OPEN, OVER = with_action(incident(EVIL)), dismissed(incident("s2", model="other"))


@dataclass
class Office:
    """A configuration, and the command line that reads it."""

    settings: Settings
    config: Path

    def nnsec(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["--config", str(self.config), *words])

    def json(self, *words: str) -> Any:
        found = self.nnsec(*words, "--json")
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)

    def order(self, *words: str) -> Command:
        """Give an order, and open it as the remediation worker would."""
        said = self.json(*words, "--key", str(self.config.parent / "operator"))
        records = asyncio.run(self._read())
        command, key_id = open_command(records[-1].value, (OPERATOR.public,), datetime.now(UTC))
        assert key_id == OPERATOR.id
        assert said == {
            "command": command.id, "action": f"command-{command.id}", "outcome": "pending",
            "reason": said["reason"],
        }  # fmt: skip
        assert said["reason"].startswith("no worker has taken it yet; it is valid until 2")
        assert records[-1].key == command.model.encode()
        return command

    async def _read(self) -> list[Any]:
        return [r async for r in kafka.read_to_end(self.settings, ("commands",))]


@pytest.fixture
def office(
    settings: Settings, valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Office:
    monkeypatch.setattr(orders, "WAIT", 0.1)  # no worker runs here
    configured_ = configured(settings, tmp_path)
    config = tmp_path / "nnsec.toml"
    config.write_text(to_toml(configured_.model_dump(mode="json", exclude_defaults=True)))

    async def fill() -> None:
        await kafka.declare(configured_, now=T0)
        source = Source(source=EVIL, state="quarantined", reason="r", version=1, time=T0)
        sample = (("nnsec-rows", b"0,1"),)
        async with kafka.publisher(configured_) as publish:
            for one in (incident(EVIL), OPEN, stamped(OPEN), incident("s2", model="other"), OVER):
                await publish(Out("incidents", one.encode(), str(one.id).encode(), partition=0))
            await publish(
                Out("sources", source.encode(), EVIL.encode()),
                Out("training.accepted", b"", b"trusted", sample, partition=0),
            )  # fmt: skip
        await view.rebuild(configured_)

    asyncio.run(fill())
    return Office(configured_, config)


def test_incidents_are_listed(office: Office) -> None:
    """Those that are not over; with --all the others too; for people, and for programs."""
    (only,) = office.json("incidents", "list")
    assert (only["id"], only["state"]) == (str(OPEN.id), "awaiting_approval")
    assert only["subjects"][0]["subject"]["id"] == EVIL
    assert {one["id"] for one in office.json("incidents", "list", "--all")} == {
        str(OPEN.id), str(OVER.id),
    }  # fmt: skip
    shown = office.nnsec("incidents", "list")
    assert str(OPEN.id)[:8] in shown.stdout
    assert str(OVER.id)[:8] not in shown.stdout


def test_one_incident_is_shown(office: Office) -> None:
    """With its subjects and actions; the users' words cannot steer the terminal."""
    assert office.json("incidents", "show", str(OPEN.id))["version"] == str(OPEN.version + 1)
    shown = office.nnsec("incidents", "show", str(OPEN.id)).stdout
    assert "awaiting_approval" in shown
    assert "quarantine" in shown
    assert "\x1b" not in shown
    assert "[red]" in shown.replace("\n", "")
    assert "\N{REPLACEMENT CHARACTER}[Hwho" in shown
    unknown = office.nnsec("incidents", "show", "nothing")
    assert isinstance(unknown.exception, ConfigError)
    assert "nothing" in str(unknown.exception)


def test_what_stands_in_redis_steers_no_terminal(office: Office) -> None:
    """Whoever may write there can put anything into a field: it is shown as text."""

    async def spoil() -> None:
        names = store.Keys(office.settings.redis.prefix)
        async with store.connect(office.settings) as client:
            await client.hset(
                names.incident(str(OPEN.id)),
                mapping={"severity": "[/x]", "family": "\x1b[2J", "state": "[/y]\x1b"},
            )  # type: ignore[misc]

    asyncio.run(spoil())
    for words in (("list",), ("show", str(OPEN.id))):
        found = office.nnsec("incidents", *words)
        assert found.exit_code == 0, found.exception
        assert "[/x]" in found.stdout
        assert "\x1b" not in found.stdout


def test_transitions_are_watched(office: Office) -> None:
    """From the beginning, one line each, as they stand in the log."""
    words = ("incidents", "watch", "--from-beginning", "--limit", "4")
    lines = [json.loads(line) for line in office.nnsec(*words, "--json").stdout.splitlines()]
    assert [(one["incident"], one["from"], one["to"]) for one in lines] == [
        (str(OPEN.id), "", "open"), (str(OPEN.id), "open", "awaiting_approval"),
        (str(OVER.id), "", "open"), (str(OVER.id), "open", "dismissed"),
    ]  # fmt: skip
    shown = office.nnsec(*words).stdout
    assert "new → open" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("kind", ["approve", "deny"])
def test_orders_about_actions_are_signed(office: Office, kind: str) -> None:
    """What is approved or denied, until when, and why."""
    given = office.order("incidents", kind, "a-1", "--reason", "looked  at\nit", "--minutes", "2")
    assert (given.kind, given.model, given.target) == (kind, "digits", "a-1")
    assert given.reason == "looked at it"
    assert (given.expires - given.issued).total_seconds() == 120


def test_an_incident_is_dismissed(office: Office) -> None:
    """With a reason, which must be given."""
    key = str(office.config.parent / "operator")
    assert office.nnsec("incidents", "dismiss", str(OPEN.id), "--key", key).exit_code == 2
    given = office.order("incidents", "dismiss", str(OPEN.id), "--reason", "a drill")
    assert (given.kind, given.target) == ("dismiss", str(OPEN.id))


@pytest.mark.parametrize(
    ("target", "why"),
    [(str(OVER.id), "over already: dismissed"), (str(UUID(int=5)), "is known; see `nnsec inc")],
)
def test_a_dismissal_without_effect_is_refused(office: Office, target: str, why: str) -> None:
    """Of an incident that is over, or of none; the correlator itself would say nothing."""
    words = ("incidents", "dismiss", target, "--reason", "r", "--key")
    found = office.nnsec(*words, str(office.config.parent / "operator"))
    assert found.exit_code == 1
    assert f"refused: {'the incident is' if 'over' in why else 'no incident'}" in found.stdout
    assert why in found.stdout


def test_a_part_of_an_id_dismisses_nothing(office: Office) -> None:
    """A part of an id is refused before anything is signed."""
    words = ("incidents", "dismiss", str(OPEN.id)[:8], "--reason", "r", "--key")
    found = office.nnsec(*words, str(office.config.parent / "operator"))
    assert isinstance(found.exception, ConfigError)
    assert "no incident's whole id" in str(found.exception)


def test_the_automation_is_halted(office: Office) -> None:
    """All of it, or one model's."""
    assert office.order("incidents", "halt", "--reason", "a drill").model == "*"
    given = office.order("incidents", "resume", "--reason", "over", "--model", "digits")
    assert (given.kind, given.model, given.target) == ("resume", "digits", "")
    wrong = office.nnsec(
        "incidents", "halt", "--reason", "r", "--model", "digit",
        "--key", str(office.config.parent / "operator"),
    )  # fmt: skip
    assert "no model 'digit' is configured" in str(wrong.exception)


@pytest.mark.parametrize(
    ("word", "kind"), [("add", "quarantine"), ("release", "release"), ("drop", "drop")]
)
def test_orders_about_sources(office: Office, word: str, kind: str) -> None:
    """By the source's own name."""
    given = office.order("quarantine", word, "a source/1")
    assert (given.kind, given.model, given.target) == (kind, "digits", "a source/1")


def test_sources_are_listed(office: Office) -> None:
    """Those that are shut out; with --all every one, with counts."""
    (only,) = office.json("quarantine", "list")
    assert (only["source"], only["state"]) == (EVIL, "quarantined")
    counts = {one["source"]: one["accepted"] for one in office.json("quarantine", "list", "--all")}
    assert counts == {EVIL: "0", "trusted": "2"}
    shown = office.nnsec("quarantine", "list").stdout
    assert "\x1b" not in shown


def test_a_key_that_nobody_trusts_orders_nothing(office: Office, tmp_path: Path) -> None:
    """It is said here, instead of a dead letter far away."""
    keys.write_new(tmp_path / "stranger")
    refused = office.nnsec("incidents", "approve", "a-1", "--key", str(tmp_path / "stranger"))
    assert isinstance(refused.exception, ConfigError)
    assert "operator_keys" in str(refused.exception)


def test_among_several_models_the_view_knows_whose_it_is(office: Office) -> None:
    """An incident or action that is shown needs no --model; one that is not does."""
    settings = office.settings
    models = {**settings.models, "other": settings.models["digits"]}
    several = settings.model_copy(update={"models": models})
    office.config.write_text(to_toml(several.model_dump(mode="json", exclude_defaults=True)))
    assert office.order("incidents", "approve", str(OVER.id)).model == "other"
    assert office.order("incidents", "approve", "a-1").model == "digits"
    key = str(office.config.parent / "operator")
    unknown = office.nnsec("incidents", "approve", "a-2", "--key", key)
    assert "--model" in str(unknown.exception)


def test_the_view_is_rebuilt(office: Office) -> None:
    """And says from how many records."""
    assert office.json("rebuild") == {"records": 7}
    assert "7 records" in office.nnsec("rebuild").stdout
    assert len(office.json("incidents", "list", "--all")) == 2


def test_without_a_store_the_error_names_it(office: Office) -> None:
    """Not a traceback."""
    away = office.settings.model_copy(
        update={"redis": office.settings.redis.model_copy(update={"url": "redis://127.0.0.1:1/0"})}
    )
    office.config.write_text(to_toml(away.model_dump(mode="json", exclude_defaults=True)))
    assert isinstance(office.nnsec("incidents", "list").exception, TransientError)


async def test_a_watcher_sees_each_transition_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the past, not again after a rebuild, and on after the store was away."""
    monkeypatch.setattr(transitions, "RETRY", 0.05)
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    here = settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})
    log = store.Keys(here.redis.prefix).log
    seen: list[int] = []

    async def put(*versions: int, empty: bool = False) -> None:
        async with redis.Redis.from_url(url, decode_responses=True) as client:
            if empty:
                await client.delete(log)
            for version in versions:
                fields = {"incident": "i", "from": "open", "to": "contained",
                          "version": str(version), "by": "correlate", "reason": ""}  # fmt: skip
                await client.xadd(log, fields)  # type: ignore[arg-type]

    async def watch() -> None:
        async for entry in transitions.follow(here, beginning=False):
            seen.append(entry.version)  # noqa: PERF401 - it is looked at meanwhile

    async def until(met: Callable[[], bool]) -> None:
        async with asyncio.timeout(8):
            while not met():  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0.02)

    with Store(tmp_path, port):
        await put(1, 2)
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.3)
        await put(3)
        await until(lambda: seen == [3])
        await put(1, 2, 3, 4, empty=True)
        await until(lambda: seen == [3, 4])
    await asyncio.sleep(0.1)
    with Store(tmp_path, port):
        await put(1, 2, 3, 4, 5)
        await until(lambda: seen == [3, 4, 5])
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
