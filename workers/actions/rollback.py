"""Rolling a model back, and its mirror image, promoting a new checkpoint.

Both publish a signed statement in two phases: `prepare`, until all live workers have answered or
the time is up, then `activate`, until every input partition is held by a live worker at that
epoch. Then whatever serves the model is told, by the hook.
"""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

from nnsec.errors import NNSecError, TransientError
from nnsec.guards import Request
from schemas.action import Action
from schemas.model_statement import ModelStatement
from workers import serving
from workers.actions import Impossible, Plan, Remedy, Result
from workers.board import Target
from workers.site import PREPARE_EXPIRY, Site
from workers.vault import Stock, Vault

INPUTS = "inference.inputs"
TURNS = 6
"""Statements said for one epoch, where two are enough unless the broker takes one after its end."""
SWAP_SECONDS = 60.0
"""Within which every partition must be held by a live worker at the new epoch."""
PLANNED = ("from", "to", "digest", "verified", "golden_accuracy", "epoch")

logger = logging.getLogger(__name__)


class Rollback(Remedy):
    """Serve the newest checkpoint that verifies, never saw poison, and is not the active one."""

    name: ClassVar[str] = "rollback"
    kinds: ClassVar[frozenset[str]] = frozenset({"source", "model"})

    def __init__(self, site: Site, vault: Vault) -> None:
        super().__init__(site, vault)
        if hook := site.settings.serving.hook:
            serving.check(hook)

    async def plan(self, action: Action) -> Plan:
        """Choose the checkpoint; not needed if the active one is clean.

        A person's command names a version and is not asked whether it is needed. What failed after
        its checkpoint was activated is gone on with: the same epoch is handed on again.

        Raises
        ------
        Impossible
            If no checkpoint can serve.
        """
        model = action.model
        if model not in self.site.settings.models:
            raise Impossible(f"model {model!r} is not configured; add [models.{model}]")
        stock = await asyncio.to_thread(self.vault.survey, model, tuple(self.site.revocations))
        standing = self.site.standings.get(model)
        active = standing.activated if standing else None
        by_policy = action.incident is not None
        if active is None and by_policy:
            raise Impossible(f"no checkpoint of {model} is active, so there is nothing to leave")
        version = active.version if active else None
        clean = version in stock.digests and version not in stock.tainted
        if active is not None and clean and _reached(action, active):
            figures = {name: action.figures[name] for name in PLANNED if name in action.figures}
            return Plan(f"{version} is active; tell what serves again", figures)
        if by_policy and clean:
            return Plan(f"not needed: active checkpoint {version} is clean", {}, needed=False)
        wanted = _wanted(action)
        if active and wanted == active.version and stock.digests.get(wanted) == active.digest:
            return Plan(f"not needed: {version} is active already", {}, needed=False)
        return await self._choose(action, stock, wanted, version)

    async def _choose(
        self, action: Action, stock: Stock, wanted: int | None, active: int | None
    ) -> Plan:
        against = {**stock.refused, **stock.tainted}
        candidates = (
            [wanted]
            if wanted is not None
            else sorted((v for v in stock.digests if v != active), reverse=True)
        )
        for version in candidates:
            if version in against:
                continue
            if version not in stock.digests:
                against[version] = "is not in the registry"
                continue
            digest = stock.digests[version]
            try:
                accuracy = await asyncio.to_thread(
                    self.vault.examine, action.model, version, digest
                )
            except TransientError:
                raise
            except NNSecError as error:
                against[version] = str(error)
                continue
            standing = self.site.standings.get(action.model)
            figures = {
                "from": active, "to": version, "digest": digest, "verified": True,
                "golden_accuracy": round(accuracy, 4),
                "epoch": (standing.epoch if standing else 0) + 1,
            }  # fmt: skip
            return Plan(f"{action.action} from {active} to {version}", figures)
        why = "; ".join(f"{v}: {against[v]}" for v in candidates if v in against)
        raise Impossible(f"no clean checkpoint of {action.model} to serve ({why or 'none other'})")

    def request(self, action: Action, plan: Plan) -> Request:
        """What the guards judge: the model, and the version that it would leave."""
        return Request(
            action.action, action.model, action.model, action.automatic, plan.figures.get("from")
        )

    async def apply(self, action: Action) -> Result:
        """Publish both phases, as far as they are not there yet, and see the swap through."""
        began = self.site.clock()
        epoch, version, digest = _target(action)
        await self._activate(action)
        await self._swapped(action)
        figures = {
            "seconds": round(max((self.site.now() - action.time).total_seconds(),
                                 self.site.clock() - began), 3),
        }  # fmt: skip
        hook = self.site.settings.serving
        if not hook.hook:
            return Result(f"serves {version} (monitor only)", {**figures, "monitor_only": True})
        served = await serving.deliver(
            hook, self.site.envelopes[action.model, epoch],
            model=action.model, epoch=epoch, version=version, digest=digest,
        )  # fmt: skip
        self._standing_at(action)
        seconds = round((self.site.now() - action.time).total_seconds(), 3)
        return Result(f"serves {version}", {**figures, "served": served, "seconds": seconds})

    def _standing_at(self, action: Action) -> str:
        """How far its epoch is, as the log shows: ``none``, ``prepared`` or ``activated``.

        Raises
        ------
        Impossible
            If another statement took the epoch, or a later one.
        """
        target = _target(action)
        standing = self.site.standings.get(action.model)
        if standing is None or standing.epoch < target[0]:
            return "none"
        for one, name in ((standing.prepared, "prepared"), (standing.activated, "activated")):
            if one and (one.epoch, one.version, one.digest) == target:
                return name
        raise Impossible(f"epoch {target[0]} was overtaken: {action.model} is at {standing.epoch}")

    async def _activate(self, action: Action) -> None:
        """Say both phases, as far as they do not stand; anew what came so late that none counts it.

        Raises
        ------
        Impossible
            As `_standing_at`, and if what was said came too late again and again.
        """
        for _ in range(TURNS):
            settled = self._standing_at(action)
            if settled == "activated":
                return
            if settled == "prepared":
                await self._prepared(action.model, _target(action)[0])
                await self._clean(action)
                self._standing_at(action)
            phase = "activate" if settled == "prepared" else "prepare"
            await self.site.say_model(self._statement(action, phase))
        if self._standing_at(action) != "activated":
            raise Impossible(
                f"what was said of epoch {_target(action)[0]} reached the log only after its end, "
                f"{PREPARE_EXPIRY} from its issue; see that the clocks of this machine and of the "
                "broker are right, and approve the action to try again"
            )

    def _statement(self, action: Action, phase: str) -> ModelStatement:
        now = max(self.site.now(), action.time)  # a clock may step back in between
        return ModelStatement(
            model=action.model, epoch=action.figures["epoch"], phase=phase,  # type: ignore[arg-type]
            version=action.figures["to"], digest=action.figures["digest"],
            reason=f"{action.action}: {action.reason}"[:300],
            incident=str(action.incident or ""), issued=now, expires=now + PREPARE_EXPIRY,
        )  # fmt: skip

    async def _prepared(self, model: str, epoch: int) -> None:
        site = self.site
        answered = await site.until(
            lambda: not site.board.unanswered(model, epoch, INPUTS, site.clock()),
            site.settings.remediation.prepare_timeout,
        )
        if not answered:
            slow = site.board.unanswered(model, epoch, INPUTS, site.clock())
            logger.warning(
                "%s epoch %d: %d workers did not answer; going on", model, epoch, len(slow)
            )
        if refusals := site.board.refusals(model, epoch, INPUTS, site.clock()):
            raise Impossible(f"every worker refused epoch {epoch}: {refusals[0]}")

    async def _clean(self, action: Action) -> None:
        """Judge the checkpoint by what was revoked since it was chosen, too."""
        _, version, digest = _target(action)
        stock = await asyncio.to_thread(
            self.vault.survey, action.model, tuple(self.site.revocations)
        )
        against = {**stock.refused, **stock.tainted}.get(version)
        if against is None and stock.digests.get(version) != digest:
            against = "it is not in the registry any more"
        if against is not None:
            raise Impossible(
                f"{version} is not activated: {against}; approve the action to choose again"
            )

    async def _swapped(self, action: Action) -> None:
        site, target = self.site, _target(action)
        partitions = range(site.partitions[INPUTS])

        def left() -> tuple[int, ...]:
            return site.board.unswapped(action.model, target, INPUTS, partitions, site.clock())

        if not await site.until(
            lambda: self._standing_at(action) == "activated" and not left(), SWAP_SECONDS
        ):
            raise Impossible(
                f"the swap to epoch {target[0]} is not complete: {INPUTS} partitions "
                f"{', '.join(map(str, left()))} are held by no live worker at it; approve the "
                f"action to try again"
            )


class Promote(Rollback):
    """Serve a new checkpoint that a command names, if it verifies and never saw poison."""

    name: ClassVar[str] = "promote"
    kinds: ClassVar[frozenset[str]] = frozenset()

    async def plan(self, action: Action) -> Plan:
        """As a rollback, but the version must be named.

        Raises
        ------
        Impossible
            If it is not.
        """
        if _wanted(action) is None:
            raise Impossible(f"{action.figures.get('target')!r} is no version to promote")
        return await super().plan(action)


def _target(action: Action) -> Target:
    """What is to serve, as it was planned."""
    figures = action.figures
    return int(figures["epoch"]), int(figures["to"]), str(figures["digest"])


def _reached(action: Action, active: ModelStatement) -> bool:
    """Whether this very action activated what is active."""
    wanted = tuple(action.figures.get(name) for name in ("epoch", "to", "digest"))
    return wanted == (active.epoch, active.version, active.digest)


def _wanted(action: Action) -> int | None:
    """The version that a command names; None for the newest clean one."""
    if action.incident is not None:
        return None
    text = str(action.figures.get("target", ""))
    if text in {"", action.model}:
        return None
    if not text.isascii() or not text.isdecimal():
        raise Impossible(f"{text!r} is no version of {action.model}; name a whole number")
    return int(text)
