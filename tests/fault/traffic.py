"""What goes in and what comes out, both noted in the history."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from nnsec.adapters import kafka
from nnsec.adapters.records import Record
from nnsec.settings import Settings
from schemas.action import Action
from schemas.alert import Alert
from schemas.dead_letter import decode_dead_letter
from schemas.incident import Incident
from schemas.revocation import Revocation
from schemas.score import decode_score
from schemas.source import Source
from tests.conftest import MadeCheckpoint
from tests.fault.history import Acked, Asked, Came, Committed, History, Place
from tests.fault.plant import Plant, Worker

INPUTS, SAMPLES, LETTERS = "inference.inputs", "training.samples", "dead-letters"
OUTCOMES = ("scores", LETTERS)
Written = Sequence[tuple[str, bytes | None]]


class Feeder:
    """A user's producer: notes what it asked for, and what was acknowledged, where."""

    def __init__(self, settings: Settings, history: History, producer: Any) -> None:
        self._settings = settings
        self._history = history
        self._producer = producer
        self._flying: set[asyncio.Task[None]] = set()
        self.sent = 0

    async def send(
        self, value: bytes, headers: Written = (), *, topic: str = INPUTS, key: bytes | None = None
    ) -> None:
        """Send one record; its acknowledgement is noted when it comes."""
        name, self.sent = str(self.sent), self.sent + 1
        self._history.note(Asked(time.time(), name, topic))
        future = await self._producer.send(
            kafka.topic_name(self._settings, topic), value, key=key, headers=list(headers)
        )
        task = asyncio.create_task(self._acknowledged(name, topic, future))
        self._flying.add(task)
        task.add_done_callback(self._flying.discard)

    async def _acknowledged(self, name: str, topic: str, future: Any) -> None:
        try:
            found = await future
        except KafkaError:
            return  # in doubt: it may be there or not
        self._history.note(Acked(time.time(), name, (topic, found.partition, found.offset)))

    async def flush(self) -> None:
        """Wait for all acknowledgements."""
        while self._flying:
            await asyncio.gather(*self._flying)


@asynccontextmanager
async def feeder(
    settings: Settings, history: History, *, idempotent: bool = False
) -> AsyncIterator[Feeder]:
    """Open a producer; idempotent where the broker can, so that nothing is sent twice."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", linger_ms=5,
        enable_idempotence=idempotent, request_timeout_ms=180_000, retry_backoff_ms=200,
    )  # fmt: skip
    await producer.start()
    try:
        yield Feeder(settings, history, producer)
    finally:
        await producer.stop()


class Witness:
    """Follows topics and notes all that comes out, once for each place in the log."""

    def __init__(self, settings: Settings, history: History, topics: Sequence[str]) -> None:
        self._settings = settings
        self._history = history
        self._topics = tuple(topics)
        self._seen: set[Place] = set()
        self.about: set[Place] = set()
        """Places that have an outcome."""
        self.latest = 0.0
        """When the newest record was made, as it says itself."""

    @property
    def count(self) -> int:
        """How many places have an outcome."""
        return len(self.about)

    @property
    def total(self) -> int:
        """How many records came."""
        return len(self._seen)

    async def follow(self) -> None:
        """Note what comes, until cancelled."""
        tail = kafka.Tail(self._settings, self._topics)
        await tail.start()
        try:
            async for record in tail:
                self.see(record)
        finally:
            await tail.stop()

    async def rest(self) -> None:
        """Note what is there and was not seen yet."""
        async for record in kafka.read_to_end(self._settings, self._topics):
            self.see(record)

    def see(self, record: Record) -> None:
        """Note one record."""
        place = (record.topic, record.partition, record.offset)
        if place in self._seen:
            return
        self._seen.add(place)
        about, name = subject(record)
        made = record.timestamp / 1000
        self._history.note(Came(made, place, about, name, digest(record)))
        self.latest = max(made, self.latest)
        if about is not None:
            self.about.add(about)

    def missing(self) -> int:
        """How many acknowledged places have no outcome yet."""
        return sum(1 for event in self._history.of(Acked) if event.place not in self.about)


@asynccontextmanager
async def witness(
    settings: Settings, history: History, topics: Sequence[str] = OUTCOMES
) -> AsyncIterator[Witness]:
    """Follow topics while the block runs."""
    found = Witness(settings, history, topics)
    following = asyncio.create_task(found.follow())
    try:
        yield found
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def subject(record: Record) -> tuple[Place | None, str]:
    """The place that a record of ours is about, and its logical id.

    Alerts and incidents are about a step of their episode, or of themselves, so that the order of
    their steps is held against the same rule as that of inputs.
    """
    if record.topic == "scores":
        score = decode_score(record.value, record.headers)
        return (INPUTS, score.partition, score.offset), _id(record)
    if record.topic == LETTERS:
        letter = decode_dead_letter(record.key, record.value, record.headers)
        place = (letter.topic, letter.partition, letter.offset)
        return place, f"letter/{'/'.join(map(str, place))}"
    if record.topic in {"training.accepted", "training.quarantine"}:
        known = dict(record.headers)
        partition, offset = (int(known[f"nnsec-{n}"] or b"") for n in ("partition", "offset"))
        return (SAMPLES, partition, offset), _id(record)
    if record.topic == "alerts":
        alert = Alert.decode(record.value)
        return (f"episode {alert.episode}", 0, alert.seq), str(alert.id)
    if record.topic == "incidents":
        incident = Incident.decode(record.value)
        return (f"incident {incident.id}", 0, incident.version), _id(record)
    return _of_remediation(record)


def _of_remediation(record: Record) -> tuple[Place | None, str]:
    """An action that is done is the outcome of its command; an effect is known by what it does."""
    if record.topic == "actions":
        action = Action.decode(record.value)
        at = str(action.figures.get("command_at", ""))
        partition, _, offset = at.partition("/")
        done = (
            ("commands", int(partition), int(offset)) if action.outcome == "done" and at else None
        )
        return done, f"{action.id}/{action.outcome}"
    if record.topic == "sources":
        source = Source.decode(record.value)
        return None, f"{source.source}/{source.state}/{source.incident}"
    if record.topic == "training.revocations":
        found = Revocation.decode(record.value)
        return None, f"{found.source}/{found.withdrawn}/{found.positions}"
    return None, _id(record)


def _id(record: Record) -> str:
    return (dict(record.headers).get("ce_id") or b"").decode()


def digest(record: Record) -> str:
    """Of key, value and headers: of all that a reader gets."""
    found = hashlib.blake2b(repr((record.key, record.headers)).encode(), digest_size=12)
    found.update(record.value or b"")
    return found.hexdigest()


@asynccontextmanager
async def commits(
    settings: Settings, history: History, *read: tuple[str, str]
) -> AsyncIterator[None]:
    """Note where groups stand, again and again, while the block runs and at its end.

    Parameters
    ----------
    read:
        (role, topic) each.
    """
    known: dict[tuple[str, str, int], int] = {}

    async def look(role: str, positions: kafka.Positions) -> None:
        found = await positions.read()
        now = time.time()  # after it, as the commit was before it
        for (topic, partition), bounds in found.items():
            offset = bounds.committed or 0
            if offset > known.get((role, topic, partition), 0):
                known[role, topic, partition] = offset
                history.note(Committed(now, role, topic, partition, offset))

    async def watch(role: str, topic: str) -> None:
        async with kafka.Positions(settings, role, (topic,)) as positions:
            try:
                while True:
                    await look(role, positions)
                    await asyncio.sleep(0.1)
            finally:
                await look(role, positions)

    watching = [asyncio.create_task(watch(*one)) for one in read]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
        found = await asyncio.gather(*watching, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found), found


async def until(
    met: Callable[[], Any], seconds: float, words: Callable[[], str] = str, every: float = 0.05
) -> None:
    """Wait until something is so; what it waited for is said if it does not become so."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain\n{words()}")
        await asyncio.sleep(every)


def binary(x: Any, name: str, client: str) -> tuple[bytes, Written]:
    """One input in the binary encoding."""
    head = (
        f'{{"id":"{name}","model_name":"digits","parameters":{{"client":"{client}"}},'
        '"inputs":[{"name":"input","datatype":"UINT8","shape":[1,1,8,8],'
        '"parameters":{"binary_data_size":64}}]}'
    ).encode()
    return head + x.tobytes(), (
        ("content-type", b"application/octet-stream"),
        ("inference-header-content-length", str(len(head)).encode()),
    )


async def send(
    feed: Feeder, checkpoint: MadeCheckpoint, count: int, rate: float = float("inf")
) -> None:
    """Send inputs, so many a second at most; one in a hundred is no input."""
    began = time.monotonic()
    for done in range(count):
        n = feed.sent
        if n % 100 == 7:
            await feed.send(b"not an input")
        else:
            value, headers = binary(checkpoint.x[n % len(checkpoint.x)], f"i{n}", f"c{n % 7}")
            await feed.send(value, headers, key=b"%d" % (n % 7))
        if done % 50 == 0:
            await asyncio.sleep(max(0.0, began + done / rate - time.monotonic()))


async def finish(
    feed: Feeder, seen: Witness, plant: Plant, workers: Sequence[Worker], seconds: float
) -> None:
    """Let all that was acknowledged come out, have workers end, and look at what is there then.

    What has not come out within so many seconds is for the checker to tell.
    """
    await feed.flush()
    deadline = time.monotonic() + seconds
    while seen.missing() and time.monotonic() < deadline:  # noqa: ASYNC110 - a log has no event
        await asyncio.sleep(0.2)
    for worker in workers:
        assert await asyncio.to_thread(worker.end) == 0, plant.logs()
    if workers:
        await seen.rest()
