"""The canary says what it waits for; with the README it is tried on a whole monitor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec.adapters import kafka
from nnsec.adapters.declaration import declare
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError, GuardRefused, TransientError
from nnsec.settings import Input, Settings, parse
from nnsec.trust import keys
from schemas.alert import Subject
from schemas.incident import Incident
from tests.workers import stage
from workers import canary

SPEC = {"architecture": "a:b", "input": {"shape": [1, 4, 4], "range": [0, 16]}}


def configured(settings: Settings, *trusted: str) -> Settings:
    tables = {"models": {"canary": SPEC}, "trust": {"operator_keys": list(trusted)}}
    return parse(settings.model_dump() | tables)


async def test_a_monitor_that_is_silent_is_told(settings: Settings, tmp_path: Path) -> None:
    """Where no stream runs there is no incident: the message names it and the next step."""
    keys.write_new(tmp_path / "operator")
    given = configured(settings, f"{tmp_path}/operator.pub")
    await declare(given, now=datetime.now(UTC))
    with pytest.raises(
        TransientError, match="waited 4 s for an incident of canary; `nnsec doctor`"
    ):
        await canary.play(given, "canary", tmp_path / "operator", 4.0)


async def test_a_broker_that_is_away_is_told(settings: Settings, tmp_path: Path) -> None:
    """Before there is a broker, that is what it waits for."""
    keys.write_new(tmp_path / "operator")
    given = configured(settings, f"{tmp_path}/operator.pub").model_dump()
    given["kafka"]["bootstrap_servers"] = "127.0.0.1:1"
    with pytest.raises(TransientError, match="for Kafka to answer"):
        await canary.play(parse(given), "canary", tmp_path / "operator", 0.3)


async def test_a_key_that_is_not_trusted_is_refused(settings: Settings, tmp_path: Path) -> None:
    """Nothing is sent if the incident could not be closed."""
    keys.write_new(tmp_path / "operator")
    with pytest.raises(ConfigError, match="operator_keys"):
        await canary.play(configured(settings), "canary", tmp_path / "operator", 5.0)


def accused(known: Incident | None, *clients: str) -> Incident:
    """An incident of evasion, with one alert more about each of these clients."""
    for client in clients:
        changes = {"model": "canary", "threat": "evasion"}
        alert = stage.alert(
            1 + len(known.subjects if known else ()), client, **changes,
            subject=Subject(kind="client", id=client),
        )  # fmt: skip
        known = stage.step(known, stage.AlertSeen(alert), log=stage.UUID(int=1)).incident
    assert known is not None
    return known


def written(*incidents: Incident) -> list[Out]:
    return [Out("incidents", one.encode(), str(one.id).encode()) for one in incidents]


@contextlib.asynccontextmanager
async def correlating(settings: Settings, *joining: str, late: str = "") -> AsyncIterator[None]:
    """Opens an incident about the client that sends, which others join; one of them ``late``."""

    async def play() -> None:
        tail = kafka.Tail(settings, ("inference.inputs", "commands"))
        await tail.start()
        open_: Incident | None = None
        try:
            async with kafka.publisher(settings) as publish:
                async for record in tail:
                    if record.topic == "commands":
                        assert open_ is not None
                        known = accused(open_, late) if late else open_
                        await publish(*written(stage.dismissed(known)))
                    elif open_ is None:
                        own = accused(None, (record.key or b"").decode())
                        open_ = accused(own, *joining)
                        # At once, as one batch: the canary reads the first and must see the second.
                        await publish(*written(own, open_))
        finally:
            await tail.stop()

    task = asyncio.create_task(play())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def read(settings: Settings, topic: str) -> list[Any]:
    return [record async for record in kafka.read_to_end(settings, (topic,))]


@pytest.fixture
async def given(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a trusted key, and topics."""
    keys.write_new(tmp_path / "operator")
    found = configured(settings, f"{tmp_path}/operator.pub")
    await declare(found, now=datetime.now(UTC))
    return found


async def test_it_dismisses_an_incident_of_its_own(given: Settings, tmp_path: Path) -> None:
    """Where it is the only subject."""
    async with correlating(given):
        told = await canary.play(given, "canary", tmp_path / "operator", 20.0)
    opened = Incident.decode((await read(given, "incidents"))[0].value)
    assert told["incident"] == str(opened.id)
    assert len(await read(given, "commands")) == 1


async def test_an_open_incident_keeps_it_from_starting(given: Settings, tmp_path: Path) -> None:
    """Its noise would join that one, whose dismissal would be the attack's too."""
    attack = accused(None, "attacker")
    async with kafka.publisher(given) as publish:
        await publish(*written(attack))
    with pytest.raises(GuardRefused, match=f"would join and then dismiss: {attack.id}"):
        await canary.play(given, "canary", tmp_path / "operator", 20.0)
    assert await read(given, "inference.inputs") == []

    async with kafka.publisher(given) as publish:
        await publish(*written(stage.dismissed(attack)))
    async with correlating(given):
        await canary.play(given, "canary", tmp_path / "operator", 20.0)


async def test_an_incident_that_others_joined_is_not_dismissed(
    given: Settings, tmp_path: Path
) -> None:
    """An attack that begins after its own noise is no drill; it says who is in it."""
    async with correlating(given, "attacker", "other"):
        with pytest.raises(GuardRefused, match=r"2 other subjects .*'attacker'.*nothing was dis"):
            await canary.play(given, "canary", tmp_path / "operator", 20.0)
    assert await read(given, "commands") == []


async def test_who_joined_after_its_last_look_is_told(given: Settings, tmp_path: Path) -> None:
    """A dismissal cannot name what it was decided on; whoever was dismissed by it is named."""
    async with correlating(given, late="attacker"):
        with pytest.raises(GuardRefused, match=r"'attacker'; they came too late to be seen"):
            await canary.play(given, "canary", tmp_path / "operator", 20.0)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_noise_is_in_range_and_never_repeats(dtype: str) -> None:
    """Values are of the model's type and range, and no two rows are equal."""
    spec = Input.model_validate({"shape": (3, 5), "dtype": dtype, "range": (2, 9)})
    x = np.concatenate([canary.noise(spec, 32, seed=seed) for seed in (0, 32)])
    assert x.dtype == np.dtype(dtype)
    assert x.shape == (64, 3, 5)
    assert 2 <= x.min() < 3 < 8 < x.max() <= 9
    assert len({row.tobytes() for row in x}) == 64
