"""A stage for remediation: its site with a pen that writes on a tape, and words to put on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from nnsec.adapters.records import Out, Record
from nnsec.errors import NNSecError
from nnsec.incidents import AlertSeen, Dismissed, step
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from nnsec.trust.statements import open_statement, sign_statement
from schemas.action import Action
from schemas.alert import Alert, Subject
from schemas.base import to_millis
from schemas.command import Command
from schemas.incident import Incident
from schemas.model_statement import ModelStatement
from schemas.model_status import ModelStatus, ServedModel
from schemas.revocation import Revocation
from schemas.source import Source
from schemas.topics import TOPICS
from workers.remediation import Remediation
from workers.site import Site
from workers.vault import Stock

T0 = datetime.now(UTC).replace(microsecond=0)
LOGS = {name: uuid5(UUID(int=9), name) for name in TOPICS}
RELEASE, OPERATOR = keys.generate(), keys.generate()
ALL: Mapping[int, Sequence[int]] = {1: (0,), 2: (1,)}
"""Two workers, and the partitions that each of them holds."""
POISONING = {"severity": "high", "actions": ["quarantine", "rollback"], "approval": "none"}


class Shelf:
    """A registry in memory: digests, what is tainted, and what fails its golden set."""

    def __init__(self, versions: int = 2) -> None:
        self.digests = {v: f"{v}" * 64 for v in range(1, versions + 1)}
        self.refused: dict[int, str] = {}
        self.tainted: dict[int, str] = {}
        self.failing: dict[int, NNSecError] = {}
        self.away: list[NNSecError] = []
        self.examined: list[int] = []

    def survey(self, model: str, revocations: Sequence[Revocation]) -> Stock:
        if self.away:
            raise self.away.pop()
        return Stock(self.digests, self.refused, self.tainted)

    def examine(self, model: str, version: int, digest: str) -> float:
        self.examined.append(version)
        if version in self.failing:
            raise self.failing[version]
        return 0.97


class Stage:
    """Remediation without a broker: what it writes is on ``tape``.

    ``now`` is the time of day, which a test may set. With a ``pen`` it is written to a broker too,
    whose logs are then named.
    """

    def __init__(
        self, settings: Settings, shelf: Any = None, *, pen: Any = None,
        logs: Mapping[str, UUID] = LOGS,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._pen, self._logs = pen, logs
        self.shelf: Any = shelf if shelf is not None else Shelf()
        self.now = T0
        self.tape: list[Record] = []
        self._before: list[Record] = []
        self._offsets: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        """Begin, or begin again after a kill, with what is on the tape."""
        counts = {"inference.inputs": 2, "training.samples": 2, "incidents": 1}
        self.site = Site(self.settings, self._logs, counts, self.publish, now=lambda: self.now)
        for record in (*self._before, *self.tape):
            self.site.learn(record)
        self.site.caught_up()
        self.remediation = Remediation(self.site, self.shelf)
        self.remediation.lanes.hold(frozenset({0}))
        self.remediation.lanes.wake()

    async def kill(self) -> None:
        """Cut off whatever runs."""
        await self.remediation.lanes.stop()

    async def publish(self, *outs: Out) -> bool:
        for out in outs:
            await (self._pen(out) if self._pen is not None else asyncio.sleep(0))
            self.tape.append(self.record(out.topic, out.value, out.key, out.headers))
            self.site.learn(self.tape[-1])  # as it comes back from the log
        return True

    def record(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Any = ()
    ) -> Record:
        offset = self._offsets[topic] = self._offsets.get(topic, -1) + 1
        return Record(topic, 0, offset, to_millis(self.now), key, value, headers)

    # --- putting words on the stage ---

    async def take(self, incident: Incident) -> None:
        """Let an incident come from the correlator."""
        record = self.record("incidents", incident.encode())
        self.site.learn(record)
        await self.remediation.take(record)

    async def order(self, kind: str, target: str = "", **changes: Any) -> Record:
        """Let a signed command come."""
        record = self.record("commands", sign_command(command(kind, target, **changes), OPERATOR))
        await self.remediation.take(record)
        return record

    def status(
        self, *, partitions: Sequence[int] = (0, 1), worker: int = 1, epoch: int = 0,
        state: str = "active", sources: int = 0, leaving: bool = False, reason: str = "",
        version: int = 1,
    ) -> None:  # fmt: skip
        """Let a stream worker report."""
        self.site.learn(
            self.record(
                "models.status",
                status(
                    partitions, worker, epoch, state, sources, leaving, reason, version
                ).encode(),
            )
        )

    def serve(self, version: int, epoch: int = 1) -> None:
        """Let a checkpoint be active."""
        said = sign_statement(statement(version, epoch), RELEASE)
        self._before.append(self.record("models", said, b"digits"))
        self.site.learn(self._before[-1])

    def release(self, version: int, epoch: int, slow: timedelta = timedelta(0)) -> None:
        """Let a person say that a checkpoint serves, in both phases, by a clock that is slow."""
        for phase in ("prepare", "activate"):
            new = statement(version, epoch, phase=phase, issued=self.now - slow)
            said = sign_statement(new, RELEASE)
            self.tape.append(self.record("models", said, b"digits"))
            self.site.learn(self.tape[-1])

    # --- looking at the tape ---

    def actions(self, name: str = "") -> list[Action]:
        """What was said on ``actions``, in order."""
        found = [Action.decode(r.value) for r in self.tape if r.topic == "actions"]
        return [one for one in found if name in ("", one.action)]

    def outcomes(self, name: str = "") -> list[str]:
        return [one.outcome for one in self.actions(name)]

    def said(self, topic: str) -> list[Any]:
        """Sources, revocations, or (epoch, phase, version) of statements, in order."""
        found = [record.value for record in self.tape if record.topic == topic]
        if topic == "models":
            return [phase(value) for value in found]
        event: type[Source | Revocation] = Source if topic == "sources" else Revocation
        return [event.decode(value) for value in found]

    def buried(self) -> list[dict[str, str]]:
        """Headers of the dead letters."""
        return [
            {name: (value or b"").decode() for name, value in record.headers}
            for record in self.tape
            if record.topic == "dead-letters"
        ]

    async def until(self, met: Callable[[], Any], seconds: float = 5.0) -> None:
        """Wait until something is so, letting time pass for the worker too."""
        async with asyncio.timeout(seconds):
            while not met():  # noqa: ASYNC110 - the tape has no event to wait for
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def crew(self, holds: Mapping[int, Sequence[int]] = ALL) -> AsyncIterator[None]:
        """Stream workers that hear everything, load everything, and say so at once."""

        async def work() -> None:
            while True:
                standing = self.site.standings.get("digits")
                ready = standing.prepared if standing else None
                newest = ready or (standing.activated if standing else None)
                for worker, partitions in holds.items():
                    self.status(
                        worker=worker, partitions=partitions, sources=self.site.sources_version,
                        epoch=newest.epoch if newest else 0, state="ready" if ready else "active",
                        version=newest.version if newest else 1,
                    )  # fmt: skip
                await asyncio.sleep(0.01)

        working = asyncio.create_task(work())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def rest(self, seconds: float = 0.1) -> None:
        """Let everything happen that would."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await self.remediation.lanes.tick()
            await asyncio.sleep(0.01)


def configured(settings: Settings, folder: Any, **changes: Mapping[str, Any]) -> Settings:
    """Settings with a model, keys and a policy; ``changes`` by table."""
    for name, key in (("release", RELEASE), ("operator", OPERATOR)):
        (folder / name).write_bytes(key.pem())
        (folder / f"{name}.pub").write_bytes(key.public.pem())
    tables: dict[str, Any] = {
        "models": {
            "digits": {
                "architecture": "nnsec.models:small_cnn", "device": "cpu",
                "input": {"shape": [1, 8, 8], "dtype": "uint8", "range": [0, 16]},
            }
        },
        "policy": {"poisoning": POISONING},
        "trust": {
            "release_keys": [str(folder / "release.pub")],
            "operator_keys": [str(folder / "operator.pub")],
        },
        "remediation": {"release_key": str(folder / "release"), "prepare_timeout": 0.5},
    }  # fmt: skip
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table}
    return parse(settings.model_dump() | tables)


def alert(number: int = 1, source: str = "s1", **changes: Any) -> Alert:
    values: dict[str, Any] = {
        "id": UUID(int=number), "episode": uuid5(UUID(int=number), source), "seq": 0, "time": T0,
        "model": "digits", "model_version": "2", "threat": "backdoor", "atlas": (),
        "severity": "high", "evidence": 2.0, "subject": Subject(kind="source", id=source),
        "positions": (), "counts": {}, "explanation": "",
    }  # fmt: skip
    return Alert(**values | changes)


def incident(*sources: str, **changes: Any) -> Incident:
    """An open incident about some sources."""
    found: Incident | None = None
    for number, source in enumerate(sources or ("s1",), 1):
        found = step(found, AlertSeen(alert(number, source, **changes)), log=UUID(int=1)).incident
    assert found is not None
    return found


def dismissed(one: Incident) -> Incident:
    found = step(one, Dismissed("c", one.model, "key", "a drill", T0), log=UUID(int=1)).incident
    assert found is not None
    return found


def command(kind: str, target: str, **changes: Any) -> Command:
    values: dict[str, Any] = {
        "id": f"c-{kind}-{target}", "kind": kind, "model": "digits", "target": target,
        "reason": "a test", "issued": T0, "expires": T0 + timedelta(minutes=5),
    }  # fmt: skip
    return Command(**values | changes)


def statement(version: int, epoch: int, **changes: Any) -> ModelStatement:
    values: dict[str, Any] = {
        "model": "digits", "epoch": epoch, "phase": "activate", "version": version,
        "digest": f"{version}" * 64, "reason": "", "issued": T0, "expires": T0 + timedelta(hours=1),
    }  # fmt: skip
    return ModelStatement(**values | changes)


def phase(envelope: bytes | None, key: keys.PublicKey = RELEASE.public) -> tuple[int, str, int]:
    """(epoch, phase, version) of a signed statement."""
    found = open_statement(envelope, (key,), T0)
    return found.epoch, found.phase, found.version


def status(
    partitions: Sequence[int], worker: int = 1, epoch: int = 0, state: str = "active",
    sources: int = 0, leaving: bool = False, reason: str = "", version: int = 1,
    digest: str = "",
) -> ModelStatus:  # fmt: skip
    served = ServedModel(
        model="digits", epoch=epoch, version=version, digest=digest or f"{version}" * 64,
        state=state, reason=reason,  # type: ignore[arg-type]
    )  # fmt: skip
    return ModelStatus(
        worker=UUID(int=worker), time=T0,
        partitions={"inference.inputs": tuple(partitions), "training.samples": tuple(partitions)},
        models=(served,) if epoch else (), sources_version=sources, leaving=leaving,
    )  # fmt: skip
