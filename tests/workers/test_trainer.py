"""The trainer: learns what it may once, signs it, and asks to promote it, whenever it is killed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.adapters.registry import SIGNATURE, Registry
from nnsec.checkpoints import Manifest, Parent, create
from nnsec.checkpoints.manifest import MANIFEST
from nnsec.checkpoints.provenance import Position
from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from nnsec.trust.commands import open_command
from schemas.outcome import Outcome, encode_outcome
from schemas.revocation import Revocation
from schemas.source import Source
from schemas.training import Sample
from tests.conftest import MadeCheckpoint
from tests.workers.field import Field
from workers.curriculum import Curriculum
from workers.process import Process
from workers.refusals import Refusals
from workers.trainer import CALM, LOOK, Stopped, Trainer, _turn

LOG = UUID(int=5)
NOW = datetime.now(UTC).replace(microsecond=0)
LATER = CALM + 1.0


@pytest.fixture
def school(settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path) -> Settings:
    """Settings with a trainer that needs 20 samples and is quick."""
    given = checkpoint.configure(settings, tmp_path).model_dump()
    given["trainer"] |= {
        "operator_key": str(checkpoint.operator_key), "release_key": str(checkpoint.release_key),
        "reference": str(checkpoint.reference), "min_samples": 20, "epochs": 1,
        "adversarial_epsilon": 0.0,
    }  # fmt: skip
    return parse(given)


def samples(
    checkpoint: MadeCheckpoint, offsets: range, source: str = "s1", log: UUID = LOG, first: int = 0,
    row: int = 0,
) -> list[Out]:  # fmt: skip
    """Accepted records of one held-out image each, as the screen writes them."""
    outs = []
    for offset in offsets:
        at = offset - first
        x, y = checkpoint.x[at : at + 1], checkpoint.y[at : at + 1]
        found = Outcome(
            log=log, partition=0, offset=offset, rows=(row,), verdict="accepted", reasons=((),),
            sample=Sample("digits", f"r-{offset}", source, x, y, "binary"), version="1", time=NOW,
        )  # fmt: skip
        value, headers = encode_outcome(found)
        outs.append(Out("training.accepted", value, source.encode(), headers))
    return outs


def with_trainer(settings: Settings, **changes: float) -> Settings:
    """Settings with other values in `[trainer]`."""
    return settings.model_copy(update={"trainer": settings.trainer.model_copy(update=changes)})


def lesson(
    checkpoint: MadeCheckpoint, offsets: range, classes: Sequence[int], *, shift: int = 0
) -> list[Out]:
    """Accepted records of noisy held-out images of these classes, labelled ``shift`` too high."""
    rng = np.random.default_rng(offsets.start)
    pick = rng.choice(np.flatnonzero(np.isin(checkpoint.y, classes)), len(offsets))
    x = checkpoint.x[pick].astype(int)
    x = np.clip(x + rng.integers(-2, 3, x.shape) * (x > 0), 0, 16).astype(np.uint8)
    changed = replace(checkpoint, x=x, y=(checkpoint.y[pick] + shift) % 10)
    return samples(changed, offsets, first=offsets.start)


def tell(trainer: Trainer, *outs: Out, clock: float = 0.0) -> None:
    for out in outs:
        at = int(NOW.timestamp() * 1000)
        record = Record(out.topic, 0, 0, at, out.key, out.value, out.headers)
        trainer.told.apply(record, clock)


def revocation(*offsets: int, log: UUID = LOG) -> Out:
    said = Revocation(
        id=f"r-{offsets}", model="digits", source="s1", incident="", log=log, reason="", time=NOW,
        positions=tuple((0, offset, 0) for offset in offsets),
    )  # fmt: skip
    return Out("training.revocations", said.encode(), said.id.encode())


def quarantined(source: str) -> Out:
    said = Source(source=source, state="quarantined", reason="", version=1, time=NOW)
    return Out("sources", said.encode(), source.encode())


def manifest(settings: Settings, version: int) -> Manifest:
    files = Registry(settings.registry.url).fetch("digits", version)
    return Manifest.decode(files[MANIFEST])


def learned(found: Manifest) -> list[int]:
    """Offsets, of partition 0."""
    return [o for part in found.learned for a, b in part.ranges for o in range(a, b + 1)]


async def test_it_learns_signs_and_asks_once(
    school: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may learn, from the newest clean checkpoint; begun anew it asks for the same."""
    told = (
        *samples(checkpoint, range(24)), *samples(checkpoint, range(24, 30), "s2"),
        revocation(3, 4), quarantined("s2"),
    )  # fmt: skip
    trainer = Trainer(school, LOG)
    tell(trainer, *told)
    order = await trainer.step("digits", now=NOW, clock=LATER)
    assert order is not None
    made = manifest(school, 2)
    assert (made.parent.version if made.parent else 0, made.rows) == (1, 22)
    assert learned(made) == [offset for offset in range(24) if offset not in (3, 4)]
    operator = keys.load_public(f"{checkpoint.operator_key}.pub")
    command, _ = open_command(order.value, (operator,), NOW)
    assert (command.kind, command.target, command.model) == ("promote", "2", "digits")
    assert (order.topic, order.key) == ("commands", b"digits")

    # Killed before the order was out: it is given after, by the same id, and nothing is trained.
    again = Trainer(school, LOG)
    tell(again, *told)
    repeated = await again.step("digits", now=NOW, clock=LATER)
    assert repeated is not None
    assert open_command(repeated.value, (operator,), NOW).command == command
    assert Registry(school.registry.url).list("digits") == (1, 2)

    # Once it is out there is nothing to do, until there is something new to learn.
    tell(again, repeated)
    assert await again.step("digits", now=NOW, clock=LATER) is None
    tell(again, *samples(checkpoint, range(30, 40)))
    assert await again.step("digits", now=NOW, clock=LATER) is None
    assert Registry(school.registry.url).list("digits") == (1, 2)

    # What it learned turns out as poison: it begins again before that, without it.
    tell(again, revocation(0), clock=LATER)
    assert await again.step("digits", now=NOW, clock=LATER) is None, "more may be revoked yet"
    third = await again.step("digits", now=NOW, clock=2 * LATER)
    assert third is not None
    made = manifest(school, 3)
    assert made.parent is not None
    assert made.parent.version == 1
    assert learned(made) == [o for o in range(40) if o not in (0, 3, 4, *range(24, 30))]


async def test_a_lesson_of_one_class_makes_the_model_forget_no_other(
    school: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Right samples may all be of one class; reference data beside them keep the others known."""
    trainer = Trainer(with_trainer(school, min_samples=200, epochs=5), LOG)
    tell(trainer, *lesson(checkpoint, range(200), [3]))
    assert await trainer.step("digits", now=NOW, clock=LATER) is not None
    before, after = (manifest(school, version).metrics for version in (1, 2))
    assert after.n == before.n
    assert after.clean_accuracy > before.clean_accuracy - 0.02
    assert manifest(school, 2).rows == 200, "reference data are no samples"


async def test_what_a_lesson_made_worse_is_not_signed(
    school: Settings, checkpoint: MadeCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor asked for, nor tried again as it is; it says so. What else there is is learned alone."""
    trainer = Trainer(with_trainer(school, epochs=10), LOG)
    own, orders = Process("trainer"), []

    async def publish(*outs: Out) -> None:
        orders.extend(outs)

    tell(trainer, *lesson(checkpoint, range(40), range(10), shift=1))
    await _turn(own, trainer, "digits", publish)
    assert Registry(school.registry.url).list("digits") == (1,)
    (said,) = (line.message for line in caplog.records if line.levelname == "ERROR")
    assert "a lesson took the accuracy on 279 held-out inputs from 0.961 to 0." in said
    assert said.endswith("not signed, and its 40 samples are set aside; most are of 's1' (40)")
    assert own.ready()[-1] == said

    caplog.clear()
    tell(trainer, *lesson(checkpoint, range(40, 59), range(10)))
    await _turn(own, trainer, "digits", publish)
    assert not caplog.records, "19 of 20 further samples: nothing is trained"
    assert own.ready()[-1] == said
    assert orders == []

    tell(trainer, *lesson(checkpoint, range(59, 440), range(10)))
    await _turn(own, trainer, "digits", publish)
    assert learned(manifest(school, 2)) == list(range(40, 440))
    assert len(orders) == 1
    assert said not in own.ready()


async def test_a_refused_lesson_at_the_head_stops_no_other(
    school: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a manifest cannot name more than was refused, what comes after is learned at once."""
    monkeypatch.setattr("workers.curriculum.MAX_EXCLUSIONS", 40)
    trainer = Trainer(with_trainer(school, epochs=10), LOG)
    tell(trainer, *lesson(checkpoint, range(40), range(10), shift=1))
    tell(trainer, *lesson(checkpoint, range(40, 80), range(10)))
    assert await trainer.step("digits", now=NOW, clock=LATER) is None
    assert await trainer.step("digits", now=NOW, clock=LATER) is not None
    assert learned(manifest(school, 2)) == list(range(40, 80))


async def test_a_refused_lesson_that_is_revoked_is_no_problem_any_more(
    school: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Nothing of it can be learned, so that the trainer is ready."""
    trainer = Trainer(with_trainer(school, epochs=10), LOG)
    own = Process("trainer")

    async def publish(*_: Out) -> None:
        raise AssertionError

    tell(trainer, *lesson(checkpoint, range(40), range(10), shift=1))
    await _turn(own, trainer, "digits", publish)
    assert len(own.ready()) == 1
    tell(trainer, revocation(*range(40)), clock=float("-inf"))
    await _turn(own, trainer, "digits", publish)
    assert own.ready() == ()


def places(*parts: range) -> list[Position]:
    return [(LOG, 0, offset, 0) for part in parts for offset in part]


def test_what_was_refused_is_tried_again_when_it_is_another_lesson() -> None:
    """With what was refused after it, or less one that was revoked; not after others passed."""
    first, second = (Parent(version=version, digest=f"{version:064x}") for version in (1, 2))
    refusals = Refusals(20)

    def chosen(parent: Parent, *parts: range) -> list[Position]:
        return refusals.choose("digits", parent, places(*parts), repr)

    def refuse(parent: Parent, *parts: range) -> None:
        assert chosen(parent, *parts) == places(*parts)
        refusals.note("digits", "worse", parent, places(*parts), lambda _: "'s1' (1)")

    refuse(first, range(20))
    assert chosen(first, range(39)) == []
    assert chosen(first, range(40)) == places(range(20, 40)), "further ones by themselves"
    refusals.passed("digits", second)
    assert refusals.text("digits") == ""
    assert chosen(second, range(20)) == []

    further = places(range(40, 60))
    assert chosen(second, range(20), range(40, 60)) == further
    refusals.note("digits", "worse", second, further, lambda _: "'s1' (1)")
    refuse(second, range(20), range(40, 60))
    assert chosen(second, range(20), range(40, 60)) == []

    assert chosen(second, range(1, 20), range(40, 60)) == places(range(1, 20), range(40, 60))
    assert refusals.text("digits") == ""

    refuse(second, range(20))
    assert chosen(first, range(20)) == places(range(20)), "another checkpoint to train on from"


async def test_a_lesson_that_no_manifest_can_name_is_not_cut_to_a_few_samples(
    school: Settings, checkpoint: MadeCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Late rows of large records are learned after all others, and not in lessons of five."""
    trainer = Trainer(school, LOG)
    tell(trainer, *samples(checkpoint, range(30), "bad", row=16_999))
    for _ in range(2):
        assert await trainer.step("digits", now=NOW, clock=LATER) is None
        tell(trainer, *samples(checkpoint, range(30, 31), "bad", row=16_999))
    (said,) = (line.message for line in caplog.records if line.levelname == "WARNING")
    assert said.endswith("one manifest cannot name 20 of them; most samples are of 'bad' (30)")
    assert Registry(school.registry.url).list("digits") == (1,)

    tell(trainer, *samples(checkpoint, range(40, 140), "good"))
    assert await trainer.step("digits", now=NOW, clock=LATER) is not None
    assert [o for o in learned(manifest(school, 2)) if o >= 40] == list(range(40, 140))


async def test_nothing_is_built_on_a_weak_checkpoint(
    school: Settings, checkpoint: MadeCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is worse than its parent by more than a lesson may make it; nor is it asked for."""
    weights = load_file(checkpoint.weights)
    bias = next(name for name, value in weights.items() if value.shape == (10,))
    weights[bias] = weights[bias] + torch.linspace(0.0, 20.0, 10)
    data = np.load(checkpoint.reference)
    made = create(
        Registry(school.registry.url), model="digits", spec=school.models["digits"],
        weights=weights, x=data["x"], y=data["y"], key=keys.load_private(checkpoint.release_key),
        now=NOW, parent=Parent(version=1, digest=checkpoint.digest),
    )  # fmt: skip
    assert 0.5 < made.manifest.metrics.clean_accuracy < 0.9
    trainer = Trainer(school, LOG)
    tell(trainer, *samples(checkpoint, range(24)))
    assert await trainer.step("digits", now=NOW, clock=LATER) is not None
    parent = manifest(school, 3).parent
    assert parent is not None
    assert parent.version == 1
    assert "checkpoints not trained on from: 2: accuracy 0." in caplog.text


async def test_a_model_without_a_good_checkpoint_is_a_problem(
    school: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing says that it is trained no more; one that is made is found by and by."""
    trainer, own = Trainer(school, LOG), Process("trainer")
    now = [LOOK]
    monkeypatch.setattr("workers.trainer.time.monotonic", lambda: now[0])

    async def publish(*_: Out) -> None:
        pass

    tell(trainer, *samples(checkpoint, range(24)))
    with monkeypatch.context() as patch:
        patch.setattr("workers.fine_tuning.MIN_ACCURACY", 0.97)
        for _ in range(2):
            await _turn(own, trainer, "digits", publish)
    (said,) = own.ready()
    assert said == (
        "model digits is not trained: none of its checkpoints may be trained on from (1: accuracy "
        "0.961, 0.970 is needed); make a better one with nnsec checkpoint create"
    )
    await _turn(own, trainer, "digits", publish)
    assert own.ready() == (said,), "it is not looked for all the time"
    now[0] += LOOK
    await _turn(own, trainer, "digits", publish)
    assert own.ready() == ()
    assert manifest(school, 2).rows == 24

    tell(trainer, *samples(checkpoint, range(24, 25)))
    monkeypatch.setattr("workers.trainer.newest_clean", lambda *_, **__: None)
    await _turn(own, trainer, "digits", publish)
    assert "from (2 tainted ones)" in own.ready()[0]


async def test_it_reads_on_while_it_looks_for_samples(
    school: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking through all that was accepted, and collecting it, leave the event loop free."""
    threads = []

    def spied(one: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return one(*args, **options)

        return spy

    monkeypatch.setattr(Curriculum, "fresh", spied(Curriculum.fresh))
    monkeypatch.setattr(Curriculum, "lesson", spied(Curriculum.lesson))
    trainer = Trainer(school, LOG)
    tell(trainer, *samples(checkpoint, range(24)))
    assert await trainer.step("digits", now=NOW, clock=LATER) is not None
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_what_others_put_into_the_registry_takes_no_number(
    school: Settings, checkpoint: MadeCheckpoint
) -> None:
    """The new checkpoint is the one after the newest that verifies, whatever lies beside it."""
    for number, content in ((2, None), (999_999_998, b"{}"), (999_999_999, b"{}")):
        folder = Path(school.registry.url) / "digits" / str(number)
        folder.mkdir()
        if content is not None:
            (folder / SIGNATURE).write_bytes(content)
    trainer = Trainer(school, LOG)
    tell(trainer, *samples(checkpoint, range(24)))
    order = await trainer.step("digits", now=NOW, clock=LATER)
    assert order is not None
    operator = keys.load_public(f"{checkpoint.operator_key}.pub")
    assert open_command(order.value, (operator,), NOW).command.target == "3"
    assert manifest(school, 3).rows == 24


async def test_training_is_broken_off_between_two_steps(
    school: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Asked to end, it leaves nothing behind."""
    trainer = Trainer(school, LOG, lambda: True)
    tell(trainer, *samples(checkpoint, range(24)))
    with pytest.raises(Stopped):
        await trainer.step("digits", now=NOW, clock=LATER)
    assert Registry(school.registry.url).list("digits") == (1,)


async def test_without_a_checkpoint_there_is_nothing_to_train_on(
    school: Settings, tmp_path: Path
) -> None:
    """An empty registry is no error: the first checkpoint is made by hand."""
    (tmp_path / "empty").mkdir()
    empty = school.model_copy(
        update={"registry": school.registry.model_copy(update={"url": str(tmp_path / "empty")})}
    )
    trainer = Trainer(empty, LOG)
    assert await trainer.step("digits", now=NOW, clock=LATER) is None


async def test_an_absent_registry_may_come_back(
    school: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again at the next turn."""
    trainer = Trainer(school, LOG)

    def away(*_: object, **__: object) -> None:
        raise TransientError("away")

    with monkeypatch.context() as patch:
        patch.setattr("workers.trainer.survey", away)
        with pytest.raises(TransientError):
            await trainer.step("digits", now=NOW, clock=LATER)
    assert await trainer.step("digits", now=NOW, clock=LATER) is None


@pytest.mark.parametrize("name", ["operator_key", "release_key", "reference"])
def test_a_key_that_is_missing_is_named(school: Settings, name: str) -> None:
    """At the start, not when it is needed hours later."""
    lacking = school.model_copy(update={"trainer": school.trainer.model_copy(update={name: ""})})
    with pytest.raises(ConfigError, match=name):
        Trainer(lacking, LOG)


async def test_killed_in_training_it_learns_everything_once(
    school: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """Kill -9 in the middle; begun again: one checkpoint, one order, each sample once."""
    log = (await kafka.declare(school, now=NOW))["training.samples"]
    slow = school.model_copy(update={"trainer": school.trainer.model_copy(update={"epochs": 400})})
    here = Field(slow, tmp_path, checkpoint, {})
    async with kafka.publisher(school) as publish:
        await publish(*samples(checkpoint, range(40), log=log))
    try:
        first = here.start("worker", "trainer")
        await here.until(lambda: said(here, "training on from checkpoint 1"), 60.0)
        here.kill(first)
        here.settings = school
        (tmp_path / "nnsec.toml").unlink()
        here.start("worker", "trainer")

        async def ordered() -> bool:
            return len(await here.read("commands")) > 0

        await here.until(ordered, 60.0)
        await asyncio.sleep(1.0)
        assert len(await here.read("commands")) == 1
    finally:
        here.close()
    assert Registry(school.registry.url).list("digits") == (1, 2)
    assert learned(manifest(school, 2)) == list(range(40))


async def said(here: Field, text: str) -> bool:
    return text in here.log()
