"""From an alert to a contained incident: real stream workers, killed and added in mid-swap."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from nnsec.trust import keys
from schemas.incident import Incident
from schemas.model_status import ModelStatus
from tests.conftest import MadeCheckpoint
from tests.workers import field, stage
from tests.workers.field import Field


async def states(here: Field) -> list[str]:
    """States that the incident went through, as the correlator wrote them."""
    found = [Incident.decode(record.value) for record in await here.read("incidents")]
    return [change.to for change in found[-1].history] if found else []


async def test_workers_killed_and_added_in_mid_swap(
    settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """The incident is contained when all partitions are held at the epoch, and the hook agrees."""
    serves: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        serves.append(request.headers["nnsec-digest"])
        return web.json_response({"digest": serves[-1]})

    app = web.Application()
    app.router.add_post("/hook", answer)
    log = (await kafka.declare(settings, now=datetime.now(UTC)))["training.samples"]
    async with TestServer(app) as server:
        tables = {
            "serving": {"hook": str(server.make_url("/hook"))},
            "remediation": {"quiet_seconds": 2.0, "prepare_timeout": 2.0},
        }
        with field.made(settings, checkpoint, tmp_path, log, **tables) as here:
            async with kafka.publisher(here.settings) as publish:
                await publish(here.statement(3, 1), *field.accepted(log, range(10)))
                await run(here, publish)
    assert serves == [checkpoint.digest]


async def run(here: Field, publish: kafka.Publisher) -> None:
    """Start everything, let the alert come, and kill one stream worker when it prepares."""
    first, second = here.start("stream"), here.start("stream")
    worker = here.start("worker", "remediation")
    for role, process in (("stream", first), ("stream", second), ("remediation", worker)):
        await here.ready(role, process)
    await publish(Out("alerts", stage.alert().encode(), b"digits"))

    async def said(wanted: int) -> bool:
        return len(await here.read("models")) >= wanted

    await here.until(lambda: said(2))
    here.kill(second)
    third = here.start("stream")

    async def contained() -> bool:
        return "contained" in await states(here)

    await here.until(contained, 60.0)
    key = keys.load_public(f"{here.checkpoint.release_key}.pub")
    assert [stage.phase(r.value, key) for r in await here.read("models")] == [
        (1, "activate", 3), (2, "prepare", 1), (2, "activate", 1),
    ]  # fmt: skip
    assert len(await here.read("training.revocations")) == 1
    held: dict[str, tuple[int, ...]] = {}
    for record in await here.read("models.status"):
        status = ModelStatus.decode(record.value)
        if any((m.epoch, m.state) == (2, "active") for m in status.models):
            held[str(status.worker)] = status.partitions.get("inference.inputs", ())
    assert {p for partitions in held.values() for p in partitions} == {0, 1, 2, 3}

    await here.ready("stream", third)

    async def resolved() -> bool:
        return (await states(here))[-1] == "resolved"

    await here.until(resolved, 30.0)
    found = await states(here)
    assert [s for i, s in enumerate(found) if s != found[i - 1]] == [
        "open", "containing", "contained", "resolved",
    ]  # fmt: skip
    for process in (worker, third, first):
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 40) == 0, here.log()
