"""The canary: one incident opened and closed on purpose, to see that the whole path is alive.

A dismissal names an incident and not what it was about, and a dismissed attack opens no other
incident. So the canary does not begin where it would join one, looks again before it signs, and
says so if somebody joined between its last look and the dismissal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from nnsec.adapters.declaration import declare
from nnsec.adapters.publisher import Publisher, publisher
from nnsec.adapters.records import Out, Record
from nnsec.adapters.tail import Tail, read_to_end
from nnsec.errors import GuardRefused, SchemaError, TransientError
from nnsec.settings import Input, Settings
from schemas.command import Command
from schemas.incident import FINISHED, Incident
from schemas.inference import encode_request
from workers.commands import orders
from workers.words import counted

ROWS = 32
EVERY_SECONDS = 0.2
_ADVICE = "`nnsec doctor` says what is not ready"

logger = logging.getLogger(__name__)


async def play(settings: Settings, model: str, key: Path, seconds: float) -> dict[str, Any]:
    """Send noise until an incident opens, dismiss it, and wait until it is closed.

    Parameters
    ----------
    model:
        A configured model with a released checkpoint.
    key:
        An operator's private key (PEM file).
    seconds:
        How long it may take in all.

    Returns
    -------
    dict
        The incident, the inputs sent, and the seconds to its opening and from there to its end.

    Raises
    ------
    ConfigError
        If the key is not trusted.
    GuardRefused
        If the model has an open incident that the noise would join, or others joined the canary's.
    TransientError
        If it takes longer, saying what was waited for.
    """
    signer = orders.trusted(settings, key)
    client = f"canary-{uuid4().hex[:8]}"
    loop = asyncio.get_running_loop()
    waiting = "Kafka to answer"
    try:
        async with asyncio.timeout(seconds), contextlib.AsyncExitStack() as stack:
            await declare(settings, now=datetime.now(UTC))
            waiting = f"an incident of {model}"
            tail = Tail(settings, ("incidents",))
            stack.push_async_callback(tail.stop)
            await tail.start()
            _refuse_busy(model, await _newest(tail.to_end()))
            noise = Noise(
                settings, model, client, await stack.enter_async_context(publisher(settings))
            )
            begun = loop.time()
            async with noise:
                place, opened = await _next(tail, lambda one: _accuses(one, model, client))
            after = loop.time()
            waiting = f"incident {opened.id} to be dismissed"
            closed = await _now(settings, place, opened)
            _check_own(closed, client, "nothing was dismissed")
            if closed.state not in FINISHED:
                await orders.publish(settings, _dismissal(opened), signer)
                _, closed = await _next(
                    tail, lambda one: one.id == opened.id and one.state in FINISHED
                )
                _check_own(
                    closed, client, "they came too late to be seen, and were dismissed with it: "
                    "their episodes open no other incident, so look at `nnsec alerts`",
                )  # fmt: skip
    except TimeoutError as error:
        raise TransientError(f"waited {seconds:g} s for {waiting}; {_ADVICE}") from error
    return {
        "incident": str(opened.id), "inputs": noise.sent,
        "opened_seconds": round(after - begun, 3), "closed_seconds": round(loop.time() - after, 3),
    }  # fmt: skip


class Noise:
    """Sends noise of a model's shape while the block runs; no two inputs are equal.

    Parameters
    ----------
    client:
        Under whose name.
    """

    def __init__(self, settings: Settings, model: str, client: str, publish: Publisher) -> None:
        self._model, self._client, self._publish = model, client, publish
        self._input = settings.models[model].input
        self._task: asyncio.Task[None] | None = None
        self.sent = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            x = noise(self._input, ROWS, seed=self.sent)
            value, headers = encode_request(model=self._model, x=x, client=self._client)
            await self._publish(Out("inference.inputs", value, self._client.encode(), headers))
            self.sent += ROWS
            await asyncio.sleep(EVERY_SECONDS)


def noise(spec: Input, rows: int, *, seed: int) -> NDArray[Any]:
    r"""Draw inputs that look like nothing: every value uniform in the model's range.

    Returns
    -------
    (rows, \*shape) in the wire dtype.

    Examples
    --------
    >>> noise(Input(shape=(2, 3), range=(0, 16)), 4, seed=0).shape
    (4, 2, 3)
    """
    low, high = spec.range
    drawn = np.random.default_rng(seed).uniform(low, high, (rows, *spec.shape))
    return (np.rint(drawn) if spec.dtype == "uint8" else drawn).astype(spec.dtype)


async def _next(tail: Tail, wanted: Callable[[Incident], bool]) -> tuple[Record, Incident]:
    async with contextlib.aclosing(aiter(tail)) as records:  # type: ignore[type-var]
        async for record in records:
            incident = _read(record)
            if incident is not None and wanted(incident):
                return record, incident
    raise TransientError("the topic incidents ended")


async def _now(settings: Settings, place: Record, known: Incident) -> Incident:
    """An incident as the log has it by now; ``place`` is the record that it was read from."""
    start = {(place.topic, place.partition): place.offset}
    found = await _newest(read_to_end(settings, (place.topic,), start, only=True))
    return found.get(known.id, known)


async def _newest(records: AsyncIterator[Record]) -> dict[UUID, Incident]:
    found: dict[UUID, Incident] = {}
    async for record in records:
        if (incident := _read(record)) is not None:
            found[incident.id] = incident
    return found


def _read(record: Record) -> Incident | None:
    try:
        return Incident.decode(record.value)
    except SchemaError as error:
        logger.warning("passed over incidents/%d/%d: %s", record.partition, record.offset, error)
        return None


def _refuse_busy(model: str, known: Mapping[UUID, Incident]) -> None:
    found = [
        str(one.id)
        for one in known.values()
        if (one.model, one.family) == (model, "evasion") and one.state not in FINISHED
    ]
    if found:
        raise GuardRefused(
            f"model {model} has an open incident that the canary would join and then dismiss: "
            f"{', '.join(found)}; wait until it is over, or give the canary a model of its own"
        )


def _check_own(incident: Incident, client: str, outcome: str) -> None:
    """Refuse to answer for others; of very many subjects an incident only counts the weakest."""
    others = [one.subject.id for one in incident.subjects if one.subject.id != client]
    left_out = int(incident.evidence.get("subjects_left_out", 0))
    if others or left_out:
        named = ", ".join(map(repr, others[:3]))
        raise GuardRefused(
            f"incident {incident.id} of model {incident.model} is not the canary's alone: "
            f"{counted(len(others) + left_out, 'other subject')} joined it, {named}; {outcome}"
        )


def _accuses(incident: Incident, model: str, client: str) -> bool:
    return (
        incident.model == model
        and incident.state not in FINISHED
        and any(one.subject.id == client for one in incident.subjects)
    )


def _dismissal(incident: Incident) -> Command:
    now = datetime.now(UTC)
    return Command(
        id=str(uuid4()), kind="dismiss", model=incident.model, target=str(incident.id),
        reason="opened by the canary", issued=now, expires=now + timedelta(minutes=10),
    )  # fmt: skip
