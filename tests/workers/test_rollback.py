"""Rolling back and promoting: which checkpoint, in two phases, and to what serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from nnsec.adapters.records import Out
from nnsec.errors import TransientError, Unsafe
from nnsec.settings import Settings
from tests.workers.stage import OPERATOR, Shelf, Stage, configured, incident, phase
from workers.actions import rollback

POLICY = {"poisoning": {"severity": "high", "actions": ["rollback"], "approval": "none"}}
DONE = [(2, "prepare", 1), (2, "activate", 1)]


def made(folder: Path, shelf: Shelf | None = None, **changes: Any) -> Stage:
    """A stage on which checkpoint 2 serves, and has learned from poison."""
    stage = Stage(configured(Settings(), folder, policy=POLICY, **changes), shelf)
    stage.serve(2)
    stage.shelf.tainted = {2: "learned from 3 revoked samples"}
    return stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return made(tmp_path)


class Server:
    """What serves the model: it loads what it is told, and answers with what it serves now."""

    def __init__(self) -> None:
        self.broken = False
        self.serves = ""
        self.told: list[tuple[int, str, int]] = []

    async def answer(self, request: web.Request) -> web.Response:
        if self.broken:
            return web.Response(status=503, text="out of memory")
        self.told.append(phase(await request.read()))
        self.serves = request.headers["nnsec-digest"]
        return web.json_response({"digest": self.serves})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/hook", self.answer)
        async with TestServer(app) as server:
            yield str(server.make_url("/hook"))


async def test_the_serving_model_is_told_and_confirms(tmp_path: Path) -> None:
    """With a hook, done means that what serves answered with the digest."""
    server = Server()
    async with server.running() as url:
        stage = made(tmp_path, serving={"hook": url, "timeout": 2.0})
        async with stage.crew():
            await stage.take(incident())
            await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert server.told == [(2, "activate", 1)]
    assert server.serves == stage.actions()[-1].figures["served"] == "1" * 64
    assert "monitor_only" not in stage.actions()[-1].figures


async def test_a_hook_that_fails_fails_the_action_and_approval_tries_again(tmp_path: Path) -> None:
    """The same epoch is handed on again: workers have swapped already, and need not again."""
    server = Server()
    server.broken = True
    async with server.running() as url:
        stage = made(tmp_path, serving={"hook": url, "timeout": 0.3})
        async with stage.crew():
            await stage.take(incident())
            await stage.until(lambda: stage.outcomes() == ["proposed", "running", "failed"])
            assert "503 Service Unavailable: out of memory" in stage.actions()[-1].reason
            server.broken = False
            await stage.order("approve", str(incident().id))
            await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")
    assert stage.said("models") == DONE
    assert server.told == [(2, "activate", 1)]
    last = stage.actions("rollback")[-1]
    assert (last.by, last.figures["epoch"], last.figures["to"]) == ("remediation", 2, 1)


async def test_what_failed_and_is_tainted_since_is_left_for_another(tmp_path: Path) -> None:
    """Trying again judges anew: the checkpoint of the first try may have turned out bad."""
    shelf = Shelf(3)
    stage = made(tmp_path, shelf, serving={"hook": "/no-such-hook", "timeout": 0.1})
    stage.serve(3, 2)
    shelf.tainted = {3: "poison"}
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
        shelf.tainted = {3: "poison", 2: "poison"}
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("rollback").count("failed") == 2)
    assert [said[::2] for said in stage.said("models")] == [(3, 2), (3, 2), (4, 1), (4, 1)]


@pytest.mark.parametrize("late", [(1,), (2,), (1, 2), (2, 3)])
async def test_a_statement_that_came_too_late_is_said_anew(
    tmp_path: Path, late: tuple[int, ...]
) -> None:
    """The broker was away for longer than it is valid: no reader counts it, its writer neither."""
    stage = made(tmp_path)
    published, said = stage.site.publish, 0

    async def slow(*outs: Out) -> bool:
        nonlocal said
        if outs[0].topic == "models":
            said += 1
            stage.now += timedelta(hours=1, seconds=1) if said in late else timedelta(0)
        return await published(*outs)

    stage.site.publish = slow
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] in (["done"], ["failed"]))
    assert stage.outcomes()[-1] == "done"
    assert len(stage.said("models")) == 2 + len(late)
    active = stage.site.standings["digits"].activated
    assert active is not None
    assert (active.epoch, active.version) == (2, 1)
    assert stage.now < active.expires


async def test_a_clock_that_is_behind_the_broker_fails_in_words(tmp_path: Path) -> None:
    """Each statement is over when it comes: after some of them a person is told why."""
    stage = made(tmp_path)
    published = stage.site.publish

    async def ahead(*outs: Out) -> bool:
        stage.now += timedelta(hours=1, seconds=1)
        done = await published(*outs)
        stage.now -= timedelta(hours=1, seconds=1)
        return done

    stage.site.publish = ahead
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] in (["done"], ["failed"]))
    assert "epoch 2 reached the log only after its end" in stage.actions()[-1].reason
    assert stage.said("models") == DONE[:1] * rollback.TURNS


async def test_a_worker_that_does_not_answer_does_not_hold_up_the_swap(tmp_path: Path) -> None:
    """After ``prepare_timeout`` it is activated, and waited for until it is there."""
    stage = made(tmp_path, remediation={"prepare_timeout": 0.2})
    await stage.take(incident())
    stage.status(worker=1, partitions=(0,), epoch=1)
    stage.status(worker=2, partitions=(1,), epoch=1)
    await stage.until(lambda: stage.said("models") == DONE[:1])
    stage.status(worker=1, partitions=(0,), epoch=2, state="ready")
    await stage.until(lambda: stage.said("models") == DONE)
    stage.status(worker=1, partitions=(0,), epoch=2)
    await stage.rest(0.2)
    assert stage.outcomes()[-1] == "running"
    stage.status(worker=2, partitions=(1,), epoch=2)
    await stage.until(lambda: stage.outcomes()[-1] == "done")


async def test_workers_killed_and_added_in_mid_swap(stage: Stage) -> None:
    """It is complete when every partition is held at the epoch, whoever holds it by then."""
    stage.status(worker=1, partitions=(0,), epoch=1)
    stage.status(worker=2, partitions=(1,), epoch=1)
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == DONE[:1])
    stage.status(worker=1, partitions=(0,), epoch=2, state="ready")
    stage.status(worker=2, leaving=True)
    await stage.until(lambda: stage.said("models") == DONE)
    stage.status(worker=1, partitions=(0,), epoch=2)
    stage.status(worker=3, partitions=(1,), epoch=1)
    await stage.rest(0.2)
    assert stage.outcomes()[-1] == "running"
    stage.status(worker=3, partitions=(1,), epoch=2)
    await stage.until(lambda: stage.outcomes()[-1] == "done")


async def test_a_swap_that_stays_incomplete_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the partitions; approved again, it goes on with the same epoch."""
    monkeypatch.setattr(rollback, "SWAP_SECONDS", 0.2)
    async with stage.crew({1: (0,)}):
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
        assert "inference.inputs partitions 1 are held by no live worker" in (
            stage.actions()[-1].reason
        )
    async with stage.crew():
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")
    assert stage.said("models") == DONE


@pytest.mark.parametrize("killed", [False, True])
async def test_what_turned_out_tainted_while_it_was_prepared_is_not_activated(
    tmp_path: Path, killed: bool
) -> None:
    """Another action may revoke what it learned from; approved again, the next one is chosen."""
    shelf = Shelf(3)
    stage = made(tmp_path, shelf)
    stage.serve(3, 2)
    shelf.tainted = {3: "poison"}
    stage.status(epoch=2, version=3)
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == [(3, "prepare", 2)])
    shelf.tainted = {3: "poison", 2: "learned from 5 revoked samples"}
    if killed:
        await stage.kill()
        stage.start()
    async with stage.crew():
        await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
        assert "2 is not activated: learned from 5 revoked samples" in stage.actions()[-1].reason
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")
    assert stage.said("models") == [(3, "prepare", 2), (4, "prepare", 1), (4, "activate", 1)]


async def test_what_left_the_registry_while_it_was_prepared_is_not_activated(stage: Stage) -> None:
    """Nobody could load it again."""
    stage.status(epoch=1, version=2)
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == DONE[:1])
    stage.shelf.digests = {2: "2" * 64}
    stage.status(epoch=2, state="ready")
    await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
    assert "1 is not activated: it is not in the registry any more" in stage.actions()[-1].reason
    assert stage.said("models") == DONE[:1]


async def test_what_every_worker_refuses_is_not_activated(stage: Stage) -> None:
    """The old checkpoint goes on, and the reason of the workers is shown."""
    await stage.take(incident())
    stage.status(epoch=1)
    await stage.until(lambda: stage.said("models") == DONE[:1])
    stage.status(epoch=2, state="refused", reason="weights.safetensors differs")
    await stage.until(lambda: stage.outcomes()[-1] == "failed")
    assert "weights.safetensors differs" in stage.actions()[-1].reason
    assert stage.said("models") == DONE[:1]


async def test_an_epoch_that_was_overtaken_fails(tmp_path: Path) -> None:
    """Another statement came between: what was planned before it must not be said any more."""
    stage = made(tmp_path, remediation={"prepare_timeout": 5.0})
    stage.status(epoch=1)
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == DONE[:1])
    await stage.kill()
    stage.serve(2, 3)
    stage.start()
    await stage.until(lambda: stage.outcomes()[-1] == "failed")
    assert "epoch 2 was overtaken: digits is at 3" in stage.actions()[-1].reason


@pytest.mark.parametrize("hook", ["", "/bin/true"])
async def test_what_a_person_releases_meanwhile_is_not_called_rolled_back(
    tmp_path: Path, hook: str
) -> None:
    """Where the log has another checkpoint at a later epoch the action fails, and says so."""
    stage = made(tmp_path, serving={"hook": hook, "timeout": 0.2})
    stage.status(epoch=1, version=2)
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == DONE[:1])
    stage.release(2, 3)
    stage.status(epoch=3, version=2)
    await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
    assert stage.actions()[-1].reason == "epoch 2 was overtaken: digits is at 3"
    assert stage.said("models") == [*DONE[:1], (3, "prepare", 2), (3, "activate", 2)]
    await stage.rest(0.05)


async def test_a_statement_that_comes_back_behind_another_does_not_count(tmp_path: Path) -> None:
    """Released between the last look and the signing: the log alone says what stands."""
    stage = made(tmp_path)
    published = stage.site.publish

    async def late(*outs: Out) -> bool:
        if stage.said("models") == DONE[:1] and outs[0].topic == "models":
            stage.release(2, 3)
        return await published(*outs)

    stage.site.publish = late
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] in (["done"], ["failed"]))
    assert stage.actions()[-1].reason == "epoch 2 was overtaken: digits is at 3"


async def test_a_release_after_the_swap_began_is_no_rollback(tmp_path: Path) -> None:
    """Workers go to the later epoch and never to this one: it fails at once, not after 60 s."""
    stage = made(tmp_path)
    stage.status(epoch=2, state="ready")
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == DONE)
    stage.release(2, 3)
    stage.status(epoch=3, version=2)
    await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
    assert stage.actions()[-1].reason == "epoch 2 was overtaken: digits is at 3"


async def test_a_worker_with_another_checkpoint_has_not_swapped(stage: Stage) -> None:
    """The epoch alone does not say what serves: version and digest count too."""
    stage.status(epoch=2, state="ready")
    await stage.take(incident())
    await stage.until(lambda: stage.said("models") == DONE)
    stage.status(epoch=2, version=2)
    await stage.rest(0.2)
    assert stage.outcomes()[-1] == "running"
    stage.status(epoch=2, version=1)
    await stage.until(lambda: stage.outcomes()[-1] == "done")


@pytest.mark.parametrize("slow", [timedelta(0), timedelta(hours=1)])
@pytest.mark.parametrize(("version", "outcome"), [(2, "awaiting_approval"), (3, "done")])
async def test_what_a_person_released_again_is_not_left_again_without_one(
    tmp_path: Path, slow: timedelta, version: int, outcome: str
) -> None:
    """A release by hand is no action, and takes back what was done by itself all the same."""
    stage = made(tmp_path, Shelf(3))
    stage.shelf.tainted = {2: "poison", 3: "poison"}
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
        stage.now += timedelta(minutes=11)  # past the cool-down
        stage.release(version, 3, slow)
        await stage.kill()
        stage.start()
        await stage.take(incident(episode=uuid5(UUID(int=7), "another")))
        await stage.until(lambda: stage.outcomes()[-1] == outcome)
    assert ("guard: flapping" in stage.actions()[-1].reason) == (version == 2)


async def test_without_a_release_key_it_fails_in_words(tmp_path: Path) -> None:
    """The key that is missing is named."""
    stage = made(tmp_path, remediation={"release_key": ""})
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
    assert "[remediation] release_key is not set" in stage.actions()[-1].reason


async def test_without_an_active_checkpoint_there_is_nothing_to_leave(tmp_path: Path) -> None:
    """An incident of a model that never served."""
    stage = Stage(configured(Settings(), tmp_path, policy=POLICY))
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
    assert "no checkpoint of digits is active" in stage.actions()[-1].reason


async def test_a_model_that_is_not_configured_cannot_be_rolled_back(stage: Stage) -> None:
    """The reason says what to add."""
    await stage.take(incident("s1", model="other"))
    await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
    assert "add [models.other]" in stage.actions()[-1].reason


async def test_a_new_checkpoint_is_promoted(tmp_path: Path) -> None:
    """On a signed command, though what serves is clean."""
    stage = made(tmp_path, Shelf(3))
    stage.shelf.tainted = {}
    async with stage.crew():
        await stage.order("promote", "3")
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert stage.said("models") == [(2, "prepare", 3), (2, "activate", 3)]
    assert {one.by for one in stage.actions()[:1]} == {OPERATOR.id}


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        ("promote", "3", "learned from poison"),
        ("promote", "4", "weights.safetensors differs"),
        ("promote", "5", "does not do what it did"),
        ("promote", "9", "is not in the registry"),
        ("promote", "", "'' is no version to promote"),
        ("promote", "latest", "'latest' is no version of digits"),
        ("promote", "-1", "'-1' is no version of digits"),
        ("rollback", "3", "learned from poison"),
        ("rollback", "٣", "is no version of digits"),
    ],
)
async def test_what_must_not_serve_is_not_promoted(
    tmp_path: Path, kind: str, target: str, said: str
) -> None:
    """Whoever asks: tainted, refused, failing, absent, or no version at all."""
    shelf = Shelf(3)
    stage = made(tmp_path, shelf)
    shelf.digests[5] = "5" * 64
    shelf.tainted = {3: "learned from poison"}
    shelf.refused = {4: "weights.safetensors differs"}
    shelf.failing = {5: Unsafe("does not do what it did")}
    await stage.order(kind, target)
    await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
    assert said in stage.actions()[-1].reason
    assert stage.said("models") == []


@pytest.mark.parametrize("target", ["", "digits"])
async def test_a_person_rolls_back_without_a_version(tmp_path: Path, target: str) -> None:
    """To the newest clean one that is not active, though what serves is clean too."""
    stage = made(tmp_path)
    stage.shelf.tainted = {}
    async with stage.crew():
        await stage.order("rollback", target)
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert stage.said("models") == DONE


async def test_what_serves_already_is_not_promoted_again(stage: Stage) -> None:
    """An order that was given twice, in two words."""
    await stage.order("promote", "2")
    await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert stage.actions()[-1].reason == "not needed: 2 is active already"
    assert stage.said("models") == []


async def test_a_registry_that_goes_away_in_the_middle_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the survey and the examination too: a checkpoint is not passed over for that."""
    monkeypatch.setattr("workers.lanes.RETRY", 0.05)
    stage.shelf.failing = {1: TransientError("away")}
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: len(stage.shelf.examined) >= 2)
        stage.shelf.failing = {}
        await stage.until(lambda: stage.outcomes()[-1] == "done")
    assert stage.said("models") == DONE


async def test_a_running_hook_is_asked_again_after_a_kill(tmp_path: Path) -> None:
    """Killed while it waited for what serves: after it the same epoch is handed on."""
    server = Server()
    server.broken = True
    async with server.running() as url:
        stage = made(tmp_path, serving={"hook": url, "timeout": 5.0})
        async with stage.crew():
            await stage.take(incident())
            await stage.until(lambda: stage.said("models") == DONE)
            await asyncio.sleep(0.1)
            await stage.kill()
            server.broken = False
            stage.start()
            await stage.until(lambda: stage.outcomes()[-1] == "done")
    assert server.told == [(2, "activate", 1)]
    assert stage.said("models") == DONE
