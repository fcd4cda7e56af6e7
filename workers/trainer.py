"""The trainer: learns from what the screens accepted, signs a checkpoint, and asks to promote it.

It holds no state but what topics and the registry say, so it may be killed at any moment: what a
checkpoint in the registry has learned is never learned twice, and one whose promotion was not asked
for before the kill is asked for after it. Lessons that made the model worse are remembered until
the process ends, and are tried once more by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.adapters.registry import Registry
from nnsec.checkpoints import (
    Created,
    Manifest,
    Parent,
    create,
    gather,
    load,
    newest_clean,
    survey,
)
from nnsec.checkpoints.provenance import SAMPLES
from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from schemas.command import Command
from schemas.headers import event_headers
from workers import process
from workers.curriculum import Lesson, lineage
from workers.fine_tuning import Worse, check, fine_tune, stuck, weak
from workers.refusals import Refusals
from workers.told import ACCEPTED, TOPICS, Told

CALM = 3.0
"""Seconds without a new revocation before training: a quarantine revokes in several records."""
LOOK = 60.0
"""Seconds until a registry without a checkpoint that is good enough is looked at again."""
TIDY = 600.0
"""Seconds from one look at what the topic has no longer to the next."""
VALID = timedelta(hours=1)
"""How long the order to promote may be carried out."""

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - no error: the process was asked to end
    """Ends training between two steps."""


class Trainer:
    """Trains on from the newest checkpoint that learned from nothing revoked and is good enough.

    Parameters
    ----------
    settings:
        `[trainer]`, `[models]`, `[registry]` and `[trust] release_keys` count.
    log:
        Identity of the log of ``training.samples``.
    stopped:
        Asked between two steps of training whether to end.

    Raises
    ------
    ConfigError
        Naming the key of `[trainer]` that is missing or wrong.
    """

    def __init__(self, settings: Settings, log: UUID, stopped: Callable[[], bool] = bool) -> None:
        table = settings.trainer
        for name in ("operator_key", "release_key", "reference"):
            if not getattr(table, name):
                raise ConfigError(f"[trainer] {name} is not set; the trainer needs it")
        self._settings = settings
        self._stopped = stopped
        self._operator = keys.load_private(table.operator_key)
        self._release = keys.load_private(table.release_key)
        self._trusted = tuple(keys.load_public(path) for path in settings.trust.release_keys)
        self._registry = Registry(settings.registry.url)
        self._looked: dict[str, tuple[int, ...]] = {}
        self.refusals = Refusals(table.min_samples)
        self.stuck: dict[str, str] = {}
        self._weak: dict[str, str] = {}
        self.told = Told(log, self._operator.public, settings.models)

    async def step(self, model: str, *, now: datetime, clock: float) -> Out | None:
        """Train and promote if there is enough to learn from.

        Parameters
        ----------
        model:
            A configured one.
        now:
            Time of what is created.
        clock:
            Seconds, as given to `Told.apply`.

        Returns
        -------
        Out or None
            The order to promote, to be published; None if there is nothing to do now.

        Raises
        ------
        TransientError
            If the registry is away.
        ConfigError
            If the configuration does not fit the checkpoints or the reference data.
        Stopped
            If the process was asked to end during training.
        """
        look = int(clock // LOOK) if model in self.stuck else 0
        changes = (self.told.changes, self.refusals.count, look)
        if self._looked.get(model) == changes or clock - self.told.revoked_at < CALM:
            return None
        found = await asyncio.to_thread(
            survey, self._registry, model, release_keys=self._trusted, now=now
        )
        manifests = found.manifests
        bad = self._weak_ones(model, manifests)
        version = newest_clean(manifests, self.told.revoked, found.digests, exclude=bad)
        self.stuck.pop(model, None)
        order = None
        if version is None and manifests:
            self.stuck[model] = stuck(model, bad, len(manifests) - len(bad))
        elif version is None:
            logger.warning("model %s has no checkpoint to train on from", model)
        else:
            parent = Parent(version=version, digest=found.digests[version])
            order = self._unasked(manifests[version], parent, now)
            order = order or await self._learn(model, parent, manifests, now)
        if order is None:  # else look again for what is to be learned
            self._looked[model] = changes
        return order

    async def _learn(
        self, model: str, parent: Parent, manifests: Mapping[int, Manifest], now: datetime
    ) -> Out | None:
        """Train on what is new, if it is enough, and make the order to promote the result."""
        curriculum = self.told.curricula.get(model)
        if curriculum is None:
            return None
        positions = await asyncio.to_thread(
            curriculum.fresh, lineage(parent.version, manifests),
            classes=len(manifests[parent.version].classes),
            revoked=self.told.revoked, quarantined=self.told.quarantined(),
        )  # fmt: skip
        wanted = self._settings.trainer.min_samples
        logger.info("model %s: %d of %d new samples accepted", model, len(positions), wanted)
        positions = await asyncio.to_thread(
            self.refusals.choose, model, parent, positions, curriculum.senders
        )
        if not positions:
            return None
        lesson = await asyncio.to_thread(curriculum.lesson, positions)
        try:
            made = await asyncio.to_thread(self._train, model, parent, manifests, lesson, now)
        except Worse as worse:
            self.refusals.note(model, str(worse), parent, positions, curriculum.senders)
            return None
        own = Parent(version=made.version, digest=made.digest)
        self.refusals.passed(model, own)
        return self._unasked(made.manifest, own, now)

    def _weak_ones(self, model: str, manifests: Mapping[int, Manifest]) -> Mapping[int, str]:
        """Checkpoints too weak to be trained on from; said whenever they change."""
        found = weak(manifests, self._settings.trainer.max_accuracy_loss)
        text = "; ".join(f"{version}: {reason}" for version, reason in sorted(found.items()))
        if text != self._weak.get(model, ""):
            logger.warning("model %s: checkpoints not trained on from: %s", model, text or "none")
            self._weak[model] = text
        return found

    def _train(
        self, model: str, parent: Parent, manifests: Mapping[int, Manifest], lesson: Lesson,
        now: datetime,
    ) -> Created:  # fmt: skip
        """Fine-tune the parent, and make a checkpoint of it; runs in a thread."""
        table, spec = self._settings.trainer, self._settings.models[model]
        base = load(
            self._registry, model, parent.version, release_keys=self._trusted, spec=spec, now=now,
            expected_digest=parent.digest,
        )  # fmt: skip
        logger.info(
            "model %s: training on from checkpoint %d with %d samples",
            model, parent.version, len(lesson.x),
        )  # fmt: skip
        tuned = fine_tune(base, lesson, spec=spec, table=table, progress=self._progress)
        check(tuned, lineage(parent.version, manifests), table)
        made = create(
            self._registry, model=model, spec=spec, weights=tuned.weights, x=tuned.reference.x,
            y=tuned.reference.y, splits=tuned.splits, metrics=tuned.metrics, key=self._release,
            now=now, seed=table.seed, above=max(manifests), parent=parent,
            provenance=gather(lesson.batches),
        )  # fmt: skip
        metrics = made.manifest.metrics
        logger.info(
            "model %s: checkpoint %d signed, accuracy %.3f clean (%.3f before) and %.3f under "
            "attack", model, made.version, metrics.clean_accuracy, tuned.before,
            metrics.robust_accuracy or 0.0,
        )  # fmt: skip
        return made

    def _progress(self, *_: object) -> None:
        if self._stopped():
            raise Stopped

    def _unasked(self, manifest: Manifest, own: Parent, now: datetime) -> Out | None:
        """The order to promote a checkpoint that was trained from the topic, if never given."""
        name = f"{manifest.model}/{own.version}/{own.digest}/promote"
        number = str(uuid.uuid5(self.told.log, name))
        if not manifest.rows or number in self.told.commands:
            return None
        reason = f"trained on {manifest.rows} accepted samples"
        if manifest.parent is not None:
            reason += f" from checkpoint {manifest.parent.version}"
        command = Command(
            id=number, kind="promote", model=manifest.model, target=str(own.version),
            reason=reason, issued=now, expires=now + VALID, parameters={"digest": own.digest},
        )  # fmt: skip
        headers = event_headers("command", id=number, source_role="trainer", time=now)
        value = sign_command(command, self._operator)
        return Out("commands", value, manifest.model.encode(), headers)


async def run(settings: Settings) -> int:
    """Run the trainer until it is asked to end; see `workers.process.run`."""

    async def work(own: process.Process) -> None:
        trainer = Trainer(settings, own.logs[SAMPLES], own.stop.is_set)
        tail = kafka.Tail(settings, TOPICS)
        await tail.start()
        try:
            async for record in tail.to_end():
                trainer.told.apply(record, time.monotonic())
            own.problem("start")
            await _serve(settings, own, trainer, tail)
        finally:
            await tail.stop()

    return await process.run(settings, "trainer", work)


async def _serve(
    settings: Settings, own: process.Process, trainer: Trainer, tail: kafka.Tail
) -> None:
    async def follow() -> None:
        async for record in tail:
            trainer.told.apply(record, time.monotonic())

    reading, tidied = asyncio.create_task(follow()), time.monotonic()
    try:
        async with kafka.publisher(settings) as publish:
            while not own.stop.is_set():
                if reading.done():
                    reading.result()
                for model in settings.models:
                    await _turn(own, trainer, model, publish)
                if time.monotonic() - tidied > TIDY:
                    trainer.told.forget(await tail.starts(ACCEPTED))
                    tidied = time.monotonic()
                await process.pause(own)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _turn(
    own: process.Process, trainer: Trainer, model: str, publish: kafka.Publisher
) -> None:
    try:
        order = await trainer.step(model, now=datetime.now(UTC), clock=time.monotonic())
    except TransientError as error:
        own.problem("the registry", str(error))
    except Stopped:
        logger.info("model %s: training was broken off", model)
    else:
        own.problem("the registry")
        own.problem(f"a better lesson of model {model}", trainer.refusals.text(model))
        own.problem(f"a checkpoint of model {model} to train on from", trainer.stuck.get(model, ""))
        if order is not None:
            await publish(order)
            logger.info("model %s: asked to promote what was trained", model)
