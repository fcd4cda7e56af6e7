"""The canary: one incident opened and closed on purpose, to see that the whole path is alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from nnsec.adapters.declaration import declare
from nnsec.adapters.publisher import Publisher, publisher
from nnsec.adapters.records import Out
from nnsec.adapters.tail import Tail
from nnsec.errors import TransientError
from nnsec.settings import Input, Settings
from schemas.command import Command
from schemas.incident import FINISHED, Incident
from schemas.inference import encode_request
from workers.commands import orders

ROWS = 32
EVERY_SECONDS = 0.2
_ADVICE = "`nnsec doctor` says what is not ready"


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
            async for _ in tail.to_end():
                pass  # what happened before is not the canary's
            noise = Noise(
                settings, model, client, await stack.enter_async_context(publisher(settings))
            )
            begun = loop.time()
            async with noise:
                opened = await _next(tail, lambda one: _accuses(one, model, client))
            after = loop.time()
            waiting = f"incident {opened.id} to be dismissed"
            await orders.publish(settings, _dismissal(opened), signer)
            await _next(tail, lambda one: one.id == opened.id and one.state in FINISHED)
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


async def _next(tail: Tail, wanted: Callable[[Incident], bool]) -> Incident:
    async with contextlib.aclosing(aiter(tail)) as records:  # type: ignore[type-var]
        async for record in records:
            if wanted(incident := Incident.decode(record.value)):
                return incident
    raise TransientError("the topic incidents ended")


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
