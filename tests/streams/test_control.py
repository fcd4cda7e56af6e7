"""The fold of statements and sources, and what the worker says it made of them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.errors import DigestMismatch, TransientError
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.base import to_millis
from schemas.model_statement import ModelStatement
from schemas.model_status import ModelStatus
from schemas.source import Source, SourceState
from streams.control import Control
from streams.swap import OVERDUE, Active

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WORKER = uuid.UUID(int=7)


class Loader:
    """Stands for the cache of checkpoints: fails as told, and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.errors: dict[int, list[Exception]] = {}
        self.kept: frozenset[tuple[int, str]] = frozenset()

    def prepare(self, model: str, version: int, digest: str) -> None:
        self.asked.append((model, version, digest))
        if self.errors.get(version):
            raise self.errors[version].pop(0)

    def retain(self, model: str, keep: frozenset[tuple[int, str]]) -> None:
        self.kept = keep


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def key(tmp_path: Path) -> keys.PrivateKey:
    return keys.write_new(tmp_path / "release")


@pytest.fixture
def trusting(tmp_path: Path, key: keys.PrivateKey) -> Settings:
    return Settings.model_validate(
        {
            "models": {"m": {"architecture": "a:b", "input": {"shape": (2,)}}},
            "trust": {"release_keys": (str(tmp_path / "release.pub"),)},
        }
    )


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def control(trusting: Settings, loader: Loader) -> Control:
    return Control(trusting, WORKER, loader, clock=Clock())  # type: ignore[arg-type]


def say(
    key: keys.PrivateKey, phase: str, epoch: int, version: int, *, model: str = "m",
    at: datetime = NOW,
) -> Record:  # fmt: skip
    statement = ModelStatement(
        model=model, epoch=epoch, phase=phase, version=version, digest=f"d{version}",
        reason="test", issued=NOW, expires=NOW + timedelta(hours=1),
    )  # fmt: skip
    value = sign_statement(statement, key)
    return Record("models", 0, epoch, to_millis(at), model.encode(), value)


def source(name: str, state: SourceState, version: int) -> Record:
    value = Source(source=name, state=state, reason="test", version=version, time=NOW).encode()
    return Record("sources", 0, version, to_millis(NOW), name.encode(), value)


def states(control: Control) -> list[tuple[int, str]]:
    return [(one.epoch, one.state) for one in control.status(NOW).models]


async def test_a_model_without_a_statement_waits(control: Control) -> None:
    """Nothing is active, and the reason names the model."""
    assert control.active("m") is None
    assert "'m'" in control.problem("m")
    assert "not configured" in control.problem("other")
    assert control.active("other") is None
    assert control.problems() == ("topics models and sources are not read to the end yet",)
    control.read = True
    assert control.problems() == (control.problem("m"),)


async def test_a_signed_activation_serves_once_loaded(
    control: Control, key: keys.PrivateKey, loader: Loader
) -> None:
    """The statement's very digest is asked for, and the checkpoint then serves."""
    control.apply(say(key, "activate", 1, 4))
    assert control.active("m") is None
    assert await control.load_wanted()
    assert control.active("m") == Active(4, "d4", 1)
    assert loader.asked == [("m", 4, "d4")]
    assert loader.kept == {(4, "d4")}
    control.read = True
    assert control.problems() == ()


@pytest.mark.parametrize("what", ["unsigned", "another key", "tombstone", "expired", "old epoch"])
async def test_an_invalid_statement_changes_nothing(
    control: Control, key: keys.PrivateKey, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Whatever is not validly signed and new is ignored, with one line that says where."""
    control.apply(say(key, "activate", 1, 4))
    await control.load_wanted()
    good = say(key, "activate", 2, 5)
    assert good.value is not None
    record = {
        "unsigned": Record("models", 0, 9, 0, b"m", b"{}"),
        "another key": say(keys.generate(), "activate", 2, 5),
        "tombstone": Record("models", 0, 9, 0, b"m", None),
        "expired": say(key, "activate", 2, 5, at=NOW + timedelta(hours=2)),
        "old epoch": say(key, "activate", 1, 5),
    }[what]
    with caplog.at_level(logging.WARNING):
        control.apply(record)
    assert [line.message.startswith("ignored models/0/") for line in caplog.records] == [True]
    await control.load_wanted()
    assert control.active("m") == Active(4, "d4", 1)


async def test_a_model_that_is_not_configured_is_not_loaded(
    control: Control, key: keys.PrivateKey, loader: Loader
) -> None:
    """Statements of other models are none of this worker's business."""
    control.apply(say(key, "activate", 1, 4, model="other"))
    assert await control.load_wanted()
    assert loader.asked == []


async def test_a_refused_checkpoint_leaves_the_old_one_active(
    control: Control, key: keys.PrivateKey, loader: Loader
) -> None:
    """The report says refused and why; past the time of a swap inputs must wait."""
    control.apply(say(key, "activate", 1, 4))
    await control.load_wanted()
    loader.errors[5] = [DigestMismatch("weights.safetensors differs")]
    control.apply(say(key, "prepare", 2, 5))
    assert await control.load_wanted()
    assert control.active("m") == Active(4, "d4", 1)
    assert states(control) == [(1, "active"), (2, "refused")]
    assert "weights.safetensors" in control.status(NOW).models[1].reason
    control.apply(say(key, "activate", 2, 5))
    assert control.active("m") == Active(4, "d4", 1)
    control._clock.now = OVERDUE + 1  # type: ignore[attr-defined]
    assert control.active("m") is None
    assert "weights.safetensors" in control.problem("m")


async def test_what_a_network_raises_refuses_its_checkpoint_alone(
    control: Control, key: keys.PrivateKey, loader: Loader
) -> None:
    """Nothing that one checkpoint meets may end the loading of all later ones."""
    loader.errors[4] = [RuntimeError("sizes of tensors must match")]
    control.apply(say(key, "activate", 1, 4))
    assert await control.load_wanted()
    assert states(control) == [(1, "refused")]
    assert control.problem("m").endswith("refused: RuntimeError: sizes of tensors must match")
    control.apply(say(key, "activate", 2, 5))
    assert await control.load_wanted()
    assert control.active("m") == Active(5, "d5", 2)


async def test_an_absent_registry_is_asked_again(
    control: Control, key: keys.PrivateKey, loader: Loader
) -> None:
    """What may pass is no refusal."""
    loader.errors[4] = [TransientError("away")]
    control.apply(say(key, "activate", 1, 4))
    assert not await control.load_wanted()
    assert states(control) == []
    assert await control.load_wanted()
    assert states(control) == [(1, "active")]


async def test_a_swap_is_reported_between_two_batches(
    control: Control, key: keys.PrivateKey
) -> None:
    """The new checkpoint serves the next batch, and is reported when no older one is in hand."""
    control.apply(say(key, "activate", 1, 4))
    await control.load_wanted()
    control.settle("score")
    control.apply(say(key, "prepare", 2, 5))
    await control.load_wanted()
    assert states(control) == [(1, "active"), (2, "ready")]
    control.apply(say(key, "activate", 2, 5))
    control.apply(source("s", "quarantined", 1))
    assert control.active("m") == Active(5, "d5", 2)
    assert states(control) == [(1, "active"), (2, "ready")]
    assert control.status(NOW).sources_version == 0
    control.settle("score")
    assert states(control) == [(2, "active")]
    assert control.status(NOW).sources_version == 1


async def test_the_slowest_role_is_reported(control: Control, key: keys.PrivateKey) -> None:
    """Else a source's last samples are accepted after those before them were revoked."""
    control.apply(say(key, "activate", 1, 4))
    await control.load_wanted()
    for role in ("score", "screen"):
        control.settle(role)
    control.apply(source("s", "quarantined", 1))
    control.apply(say(key, "activate", 2, 5))
    await control.load_wanted()
    control.settle("score")
    assert control.status(NOW).sources_version == 0
    assert (1, "active") in states(control)
    control.settle("screen")
    assert control.status(NOW).sources_version == 1
    assert states(control) == [(2, "active")]


async def test_sources_fold_by_version(control: Control) -> None:
    """The newest statement of each source holds; an older one that comes late changes nothing."""
    control.apply(source("a", "quarantined", 1))
    control.apply(source("b", "quarantined", 2))
    control.apply(source("a", "trusted", 3))
    control.apply(source("b", "watched", 1))
    control.apply(Record("sources", 0, 9, 0, b"c", b"nonsense"))
    assert not control.quarantined("a")
    assert control.quarantined("b")
    assert not control.quarantined("c")
    assert control.sources_version == 3


async def test_waiting_for_a_change(control: Control) -> None:
    """Who waits is woken by the next source statement, once each."""
    waiting = asyncio.create_task(control.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    control.apply(source("a", "quarantined", 1))
    await asyncio.wait_for(waiting, 1)


async def test_the_report_names_what_is_held(control: Control) -> None:
    """Partitions are reported by topic, in order."""
    control.hold("inference.inputs", [3, 1])
    status = control.status(NOW)
    assert status.worker == WORKER
    assert status.partitions == {"inference.inputs": (1, 3)}
    assert not status.leaving


async def test_over_a_broker(
    settings: Settings, trusting: Settings, key: keys.PrivateKey, loader: Loader
) -> None:
    """Read to the end, then follow; report at each change, and good-bye at the end."""
    together = settings.model_copy(update={"models": trusting.models, "trust": trusting.trust})
    await kafka.declare(together, now=datetime.now(UTC))
    async with kafka.publisher(together) as publish:

        async def send(record: Record) -> None:
            await publish(Out(record.topic, record.value, record.key, timestamp=record.timestamp))

        await send(say(key, "activate", 1, 4))
        await send(source("early", "quarantined", 1))
        control = Control(together, WORKER, loader)  # type: ignore[arg-type]
        await control.start()
        assert control.quarantined("early")
        tail = kafka.Tail(together, ("models.status",))
        await tail.start()
        try:
            seen = [
                status async for status in reports(tail, lambda s: served(s) == [(1, "active")])
            ]
            assert not seen[-1].leaving
            await send(say(key, "prepare", 2, 5))
            wanted = [(1, "active"), (2, "ready")]
            _ = [status async for status in reports(tail, lambda s: served(s) == wanted)]
            await send(say(key, "activate", 2, 5))
            _ = [status async for status in reports(tail, lambda s: served(s) == [(2, "active")])]
            control.hold("inference.inputs", [0, 1])
            await control.stop()
            last = [status async for status in reports(tail, lambda s: s.leaving)][-1]
            assert last.partitions == {}
        finally:
            await tail.stop()


def served(status: ModelStatus) -> list[tuple[int, str]]:
    return [(one.epoch, one.state) for one in status.models]


async def reports(tail, until):  # type: ignore[no-untyped-def]
    """Read reports until one is as wanted, at most ten seconds."""
    async with asyncio.timeout(10):
        async for record in tail:
            assert record.key == str(WORKER).encode()
            status = ModelStatus.decode(record.value)
            yield status
            if until(status):
                return


async def test_who_follows_no_more_is_not_ready(
    settings: Settings, trusting: Settings, loader: Loader
) -> None:
    """A worker that hears of no quarantine and no swap must not look well."""
    together = settings.model_copy(update={"models": trusting.models, "trust": trusting.trust})
    await kafka.declare(together, now=NOW)
    control = Control(together, WORKER, loader)  # type: ignore[arg-type]
    await control.start()

    def stumble(record: Record) -> None:
        raise RuntimeError(record.topic)

    control.apply = stumble  # type: ignore[method-assign]
    try:
        async with kafka.publisher(together) as publish, asyncio.timeout(10):
            await publish(Out("sources", b"{}"))
            while "followed no more" not in "".join(control.problems()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert control.problems() == (
            "models and sources are followed no more: RuntimeError('sources')",
        )
    finally:
        await control.stop()
