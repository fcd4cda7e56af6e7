"""The remediation worker as a process, on a real broker and a real registry."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from nnsec.trust.statements import open_statement
from schemas.action import Action
from schemas.model_statement import ModelStatement
from schemas.revocation import Revocation
from schemas.source import Source
from tests.conftest import MadeCheckpoint
from tests.workers import field, stage
from tests.workers.field import Field
from workers import remediation
from workers.cli import app
from workers.demo.stage import to_toml
from workers.lanes import Lanes
from workers.process import Process

DONE = [(1, "activate", 3), (2, "prepare", 1), (2, "activate", 1)]


class Crew:
    """Two simulated stream workers on the broker: they hear everything, and say so if willing."""

    def __init__(self, here: Field, publish: kafka.Publisher) -> None:
        self._here, self._publish = here, publish
        self.willing = True
        self._release = here.checkpoint.release_key
        self._said: list[ModelStatement] = []
        self._sources = 0

    async def work(self) -> None:
        tail = kafka.Tail(self._here.settings, ("models", "sources"))
        await tail.start()
        try:
            async for record in tail:
                if record.topic == "sources":
                    self._sources = Source.decode(record.value).version
                else:
                    self._said.append(self.opened(record.value))
                await self.report()
        finally:
            await tail.stop()

    def opened(self, envelope: bytes | None) -> ModelStatement:
        trusted = (keys.load_public(f"{self._release}.pub"),)
        return open_statement(envelope, trusted, datetime.now(UTC))

    def phase(self, envelope: bytes | None) -> tuple[int, str, int]:
        said = self.opened(envelope)
        return said.epoch, said.phase, said.version

    async def report(self) -> None:
        """Say it, as at every change."""
        known = [one for one in self._said if self.willing or one.epoch == 1]
        newest = known[-1] if known else None
        for worker, partitions in ((1, (0, 2)), (2, (1, 3))):
            said = stage.status(
                partitions, worker, sources=self._sources, epoch=newest.epoch if newest else 0,
                state="active" if newest and newest.phase == "activate" else "ready",
                version=newest.version if newest else 1, digest=newest.digest if newest else "",
            )  # fmt: skip
            await self._publish(Out("models.status", said.encode(), str(said.worker).encode()))


@asynccontextmanager
async def scene(
    settings: Settings, checkpoint: MadeCheckpoint, folder: Path
) -> AsyncIterator[tuple[Field, Crew, kafka.Publisher]]:
    """Version 3 serves, whose parent learned from ten samples that a source had accepted."""
    logs = await kafka.declare(settings, now=datetime.now(UTC))
    log = logs["training.samples"]
    with field.made(
        settings, checkpoint, folder, log, remediation={"prepare_timeout": 30.0}
    ) as here:
        async with kafka.publisher(here.settings) as publish:
            await publish(here.statement(3, 1), *field.accepted(log, range(10)))
            crew = Crew(here, publish)
            working = asyncio.create_task(crew.work())
            try:
                yield here, crew, publish
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)


def poisoning() -> Out:
    one = stage.incident("s1")
    return Out("incidents", one.encode(), str(one.id).encode(), partition=0)


async def test_from_an_incident_to_a_clean_checkpoint(
    settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """Quarantine, revocation, taint through the parent, and the swap, within seconds."""
    async with scene(settings, checkpoint, tmp_path) as (here, crew, publish):
        worker = here.start("worker", "remediation")
        await here.ready("remediation", worker)
        began = time.monotonic()
        await publish(poisoning())

        async def contained() -> bool:
            return [a.outcome for a in await here.actions()][-1:] == ["done"] and (
                len(await here.actions()) == 6
            )

        await here.until(contained)
        took = time.monotonic() - began
        said = await here.actions()
        assert [(a.action, a.outcome) for a in said] == [
            ("quarantine", "proposed"), ("rollback", "proposed"), ("quarantine", "running"),
            ("quarantine", "done"), ("rollback", "running"), ("rollback", "done"),
        ]  # fmt: skip
        assert [crew.phase(r.value) for r in await here.read("models")] == DONE
        assert said[-1].figures["from"] == 3
        assert said[-1].figures["golden_accuracy"] > 0.8
        (revocation,) = await here.read("training.revocations")
        assert len(Revocation.decode(revocation.value).positions) == 10
        assert took < 10, f"{took:.1f} s\n{here.log()}"
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 20) == 0


async def test_killed_in_mid_action_it_does_everything_once(
    settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """Kill -9 while workers prepare: begun again, it goes on with the same epoch."""
    async with scene(settings, checkpoint, tmp_path) as (here, crew, publish):
        crew.willing = False
        worker = here.start("worker", "remediation")
        await publish(poisoning())

        async def prepared() -> bool:
            return len(await here.read("models")) == 2

        await here.until(prepared)
        here.kill(worker)
        here.start("worker", "remediation")
        crew.willing = True
        await crew.report()

        async def done() -> bool:
            return [(a.action, a.outcome) for a in await here.actions()][-1] == ("rollback", "done")

        await here.until(done, 30.0)
        said = [(a.action, a.outcome) for a in await here.actions()]
        assert len(said) == len(set(said)) == 6
        assert [crew.phase(r.value) for r in await here.read("models")] == DONE
        assert len(await here.read("training.revocations")) == 1
        assert [Source.decode(r.value).version for r in await here.read("sources")] == [1]
        assert await here.read("dead-letters") == []


async def test_no_command_waits_for_incidents(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill switch works while incidents are taken, however long these need."""
    here = stage.configured(settings, tmp_path)
    running = Process("remediation", logs=await kafka.declare(here, now=datetime.now(UTC)))
    taken, through = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> None:
        taken.set()
        await through.wait()

    monkeypatch.setattr(Lanes, "propose", endless)
    now = datetime.now(UTC)
    halt = stage.command("halt", "", issued=now, expires=now + timedelta(minutes=5))
    working = asyncio.create_task(remediation.work(here, running, stage.Shelf()))
    tail = kafka.Tail(here, ("actions",))
    await tail.start()
    try:
        async with kafka.publisher(here) as publish, asyncio.timeout(60.0):
            await publish(poisoning())
            await taken.wait()
            await publish(Out("commands", sign_command(halt, stage.OPERATOR), b"digits"))
            said = Action.decode((await anext(aiter(tail))).value)
        assert (said.action, said.outcome) == ("halt", "done")
        through.set()
        running.stop.set()
        async with asyncio.timeout(10.0):
            await working
    finally:
        await tail.stop()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_an_operator_hears_what_became_of_an_order(
    settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """Done, or refused with the reason and status 1; a key that the worker does not know too."""
    keys.write_new(tmp_path / "stranger")
    one = stage.incident("s1")

    async with scene(settings, checkpoint, tmp_path) as (here, _, publish):
        worker = here.start("worker", "remediation")
        await here.ready("remediation", worker)
        given = here.settings.model_dump(mode="json", exclude_defaults=True)
        given["trust"]["operator_keys"] = [
            f"{checkpoint.operator_key}.pub", f"{tmp_path}/stranger.pub"
        ]  # fmt: skip
        (tmp_path / "newer.toml").write_text(to_toml(given), "utf-8")

        async def order(*words: str, key: object = checkpoint.operator_key) -> tuple[int, str]:
            config = ("--config", str(tmp_path / "newer.toml"))
            told = ("--key", str(key), "--reason", "r")
            found = await asyncio.to_thread(CliRunner().invoke, app, [*config, *words, *told])
            return found.exit_code, found.stdout.partition("\n")[2].strip()

        assert await order("incidents", "halt") == (0, "done: r")
        await publish(poisoning())
        await here.until(here.actions)
        await here.until(lambda: waits(here))
        assert await order("incidents", "approve", str(one.id)) == (
            0, "done: approve holds for actions: 1",
        )  # fmt: skip
        await here.until(lambda: rollback_waits(here))
        denied = await order("incidents", "deny", str(one.id))
        assert denied == (0, "done: deny holds for actions: 1")
        assert await order("incidents", "approve", str(one.id)) == (
            1, "refused: nothing of it waits for that",
        )  # fmt: skip
        for words, reason in (
            (("quarantine", "add", "anonymous"), "anonymous"),
            (("checkpoint", "rollback", "--to", "99"), "99"),
            (("incidents", "approve", "nothing"), "no action or incident 'nothing'"),
        ):
            status, said = await order(*words)
            assert (status, said.partition(":")[0]) == (1, "refused"), said
            assert reason in said
        status, said = await order("incidents", "resume", key=tmp_path / "stranger")
        assert (status, said.partition(":")[0]) == (1, "refused"), said


async def waits(here: Field) -> bool:
    return (await here.actions())[-1].outcome == "awaiting_approval"


async def rollback_waits(here: Field) -> bool:
    last = (await here.actions())[-1]
    return (last.action, last.outcome) == ("rollback", "awaiting_approval")


async def test_a_policy_with_a_fault_ends_it_at_once(settings: Settings) -> None:
    """A misspelt action is an error at the start, not an action that never runs."""
    wrong = settings.model_copy(
        update={"policy": {"poisoning": settings_policy(actions=("quarantin",))}}
    )
    with pytest.raises(ConfigError, match="unknown action 'quarantin'"):
        await remediation.work(wrong, Process("remediation"))


def settings_policy(**changes: Any) -> Any:
    from nnsec.settings import PolicyTable

    return PolicyTable(**changes)
