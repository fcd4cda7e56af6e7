"""``nnsec stream`` as a process: from a plain producer's inputs to alerts and incidents."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.alert import Alert
from schemas.dead_letter import decode_dead_letter
from schemas.incident import Incident
from schemas.model_statement import ModelStatement
from schemas.score import decode_score
from schemas.summary import Summary
from tests.conftest import MadeCheckpoint

WAIT = 40.0
"""Seconds until anything that is waited for must have come."""


@dataclass
class Stream:
    """A folder with a configuration, and the processes that were started in it."""

    settings: Settings
    folder: Path
    checkpoint: MadeCheckpoint
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start ``nnsec stream`` with all roles."""
        config = self.folder / "nnsec.toml"
        config.write_text(_toml(self.settings.model_dump(exclude_defaults=True)))
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", "--config", str(config), "stream"],
                cwd=self.folder, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
        self.processes.append(process)
        return process

    async def probe(self) -> tuple[int, str]:
        """What ``/readyz`` of the newest process says; 0 while it does not answer."""
        process = self.processes[-1]
        assert process.poll() is None, self.log()
        file = self.folder / ".nnsec" / "run" / f"stream-{process.pid}.json"
        try:
            address = json.loads(file.read_text())["address"]
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{address}/readyz") as answer,
            ):
                return answer.status, await answer.text()
        except (OSError, ValueError, aiohttp.ClientError):
            return 0, ""

    async def ready(self, words: str = "") -> None:
        """Wait until it is ready, or not ready for a reason."""
        async with asyncio.timeout(WAIT):
            while True:
                status, text = await self.probe()
                if (status == 503 and words in text) if words else status == 200:
                    return
                await asyncio.sleep(0.1)

    async def release(self) -> None:
        """Publish the signed statement that the model begins with."""
        now = datetime.now(UTC)
        statement = ModelStatement(
            model="digits", epoch=1, phase="activate", version=1, digest=self.checkpoint.digest,
            reason="first release", issued=now, expires=now + timedelta(hours=1),
        )  # fmt: skip
        value = sign_statement(statement, keys.load_private(self.checkpoint.release_key))
        async with kafka.publisher(self.settings) as publish:
            await publish(Out("models", value, b"digits"))

    def log(self) -> str:
        """What all processes wrote."""
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("log-*")))


@pytest.fixture
def stream(settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path) -> Iterator[Stream]:
    found = Stream(checkpoint.configure(settings, tmp_path), tmp_path, checkpoint)
    yield found
    for process in found.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


async def test_inputs_become_scores_alerts_and_an_incident(stream: Stream) -> None:
    """Until the model is released inputs wait; then all are scored and an attacker is found."""
    process = stream.start()
    await stream.ready("model 'digits' has no valid statement")
    x, y = stream.checkpoint.x, stream.checkpoint.y
    async with producer(stream.settings) as send:
        honest = [await send(in_json(x[i], f"j{i}", f"app-{i % 8}")) for i in range(60)]
        await stream.release()
        honest += [await send(in_binary(x[i], f"b{i}", f"app-{i % 8}")) for i in range(60, 120)]
        await send((b'{"id":"bad"}', ()))
        await send((b'{"outputs":[]}', (("ce_type", b"org.kubeflow.inference.response"),)))
        noise = np.random.default_rng(0).integers(0, 17, (80, 1, 8, 8), np.uint8)
        attack = [await send(in_binary(noise[i], f"a{i}", "mallory")) for i in range(80)]
        await stream.ready()
        found = [decode_score(r.value, r.headers) for r in await until(stream, "scores", 200)]
        assert sorted((s.partition, s.offset) for s in found) == sorted(honest + attack)
        by_id = {score.id: score for score in found}
        right = [by_id[f"{'jb'[i >= 60]}{i}"].prediction[0] == y[i] for i in range(120)]
        assert np.mean(right) > 0.85
        for i in range(30):
            body = json.dumps({"id": f"j{i}", "label": int(y[i])}).encode()
            await send((body, ()), topic="labels", key=f"j{i}".encode())
    (letter,) = await until(stream, "dead-letters", 1)
    bad = decode_dead_letter(letter.key, letter.value, letter.headers)
    assert (bad.value, bad.error_class, bad.field) == (b'{"id":"bad"}', "SchemaError", "model_name")
    alerts = [Alert.decode(r.value) for r in await until(stream, "alerts", 1)]
    assert {(a.threat, a.subject.kind, a.subject.id) for a in alerts} == {
        ("evasion", "client", "mallory")
    }
    incidents = [Incident.decode(r.value) for r in await until(stream, "incidents", 1)]
    assert {(i.model, i.family, i.state) for i in incidents} == {("digits", "evasion", "open")}
    assert len({incident.id for incident in incidents}) == 1
    labelled = await labels(stream, 30)
    assert sum(row["prediction"] == row["label"] for row in labelled) >= 25
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(stream.settings.kafka.drain_seconds) == 0, stream.log()
    assert time.monotonic() - began < stream.settings.kafka.drain_seconds
    for role, topic in (("score", "inference.inputs"), ("join", "labels")):
        async with kafka.Positions(stream.settings, role, (topic,)) as positions:
            assert sum(bounds.lag for bounds in (await positions.read()).values()) == 0
    assert not list((stream.folder / ".nnsec" / "run").glob("stream-*"))


@pytest.mark.full  # tests/fault kills it more often, and counts; this one compares the bytes
async def test_a_kill_loses_nothing_and_replays_the_same(stream: Stream) -> None:
    """Killed in the middle of its inputs: each has its outcome, and what comes twice is equal."""
    await kafka.declare(stream.settings, now=datetime.now(UTC))
    await stream.release()
    stream.start()
    await stream.ready()
    x = stream.checkpoint.x
    async with producer(stream.settings) as send:
        sent = []
        for i in range(400):
            if i % 50 == 7:
                sent.append(await send((b"not json", ())))
            encode = (in_json, in_binary)[i % 2]
            sent.append(await send(encode(x[i % len(x)], f"r{i}", f"app-{i % 5}")))
            if i == 200:
                stream.processes[0].kill()
                stream.processes[0].wait()
                stream.start()
    scores = await until(stream, "scores", 400, distinct=True)
    letters = await until(stream, "dead-letters", 8, distinct=True)
    bodies: dict[tuple[int, int], tuple[Any, ...]] = {}
    for record in scores:
        score = decode_score(record.value, record.headers)
        body = (record.key, record.value, record.headers)
        assert bodies.setdefault((score.partition, score.offset), body) == body
    dead = {
        (letter.partition, letter.offset)
        for letter in (decode_dead_letter(r.key, r.value, r.headers) for r in letters)
    }
    assert not dead & bodies.keys()
    assert sorted(dead | bodies.keys()) == sorted(sent)


def in_json(x: Any, id: str, client: str) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:  # noqa: A002
    """Write an input as a user would who knows nothing of this code."""
    body = {
        "id": id, "model_name": "digits", "parameters": {"client": client},
        "inputs": [
            {"name": "input", "datatype": "UINT8", "shape": [1, 1, 8, 8],
             "data": x.ravel().tolist()}
        ],
    }  # fmt: skip
    return json.dumps(body).encode(), (("content-type", b"application/json"),)


def in_binary(x: Any, id: str, client: str) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:  # noqa: A002
    """The same with the tensor behind the JSON."""
    head = {
        "id": id, "model_name": "digits", "parameters": {"client": client},
        "inputs": [
            {"name": "input", "datatype": "UINT8", "shape": [1, 1, 8, 8],
             "parameters": {"binary_data_size": 64}}
        ],
    }  # fmt: skip
    text = json.dumps(head).encode()
    return text + x.tobytes(), (
        ("content-type", b"application/octet-stream"),
        ("inference-header-content-length", str(len(text)).encode()),
    )


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[Any]:
    """Yield a function that sends one record with plain aiokafka and says where it lies."""
    found = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    await found.start()

    async def send(
        record: tuple[bytes, Sequence[tuple[str, bytes]]], *,
        topic: str = "inference.inputs", key: bytes | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        value, headers = record
        name = kafka.topic_name(settings, topic)
        place = await found.send_and_wait(name, value, key=key, headers=list(headers))
        return place.partition, place.offset

    try:
        yield send
    finally:
        await found.stop()


async def until(
    stream: Stream, topic: str, count: int, *, distinct: bool = False
) -> Sequence[Record]:
    """Read a topic until it has so many records (or values), and those that come just after."""
    async with asyncio.timeout(WAIT):
        while True:
            found = [record async for record in kafka.read_to_end(stream.settings, (topic,))]
            if len({(r.value, r.headers) for r in found} if distinct else found) >= count:
                return found
            assert stream.processes[-1].poll() is None, stream.log()
            await asyncio.sleep(0.2)


async def labels(stream: Stream, count: int) -> list[Any]:
    """The rows of labels that met their scores."""
    async with asyncio.timeout(WAIT):
        while True:
            records = [r async for r in kafka.read_to_end(stream.settings, ("summaries",))]
            parts = [Summary.decode(record.value) for record in records]
            rows = [row for part in parts if part.kind == "label" for row in part.unpack()]
            if len(rows) >= count:
                return rows
            await asyncio.sleep(0.2)


def _toml(tables: dict[str, Any], path: str = "") -> str:
    """Plain values and tables as TOML; JSON's texts, numbers and lists are TOML's."""
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    lines = [f"[{path}]"] if path and plain else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        if isinstance(value, dict):
            lines.append(_toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines)
