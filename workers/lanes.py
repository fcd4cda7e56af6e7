"""Running actions: one lane a model, one action at a time in it, from proposal to outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from nnsec.actions import about
from nnsec.errors import GuardRefused, NNSecError, TransientError
from nnsec.guards import Population, check_target
from nnsec.policy import plan
from schemas.action import Action
from schemas.base import from_millis, to_millis
from schemas.incident import FINISHED, Incident
from schemas.summary import Summary
from workers import process, turns
from workers.actions import Plan, Remedy, discover
from workers.site import FINAL, ROLE, Overtaken, Site
from workers.vault import Vault

RETRY = 1.0
"""Seconds until an action is tried again that met something that was away."""
COUNT_SECONDS = 60.0
"""For so long the number of active sources is taken to stand: to count them reads an hour."""
SETTLE = 0.25
"""Seconds after which what other workers said at the same moment has come from the log."""

logger = logging.getLogger(__name__)


class Lanes:
    """Proposes what the policy wants, and runs what may run.

    An action's record on ``actions`` is its only state: `wake` starts what is there and unfinished,
    after a kill as well as after a proposal.
    """

    def __init__(self, site: Site, vault: Vault) -> None:
        self._site = site
        self._remedies: Mapping[str, Remedy] = {
            name: one(site, vault) for name, one in discover().items()
        }
        self._kinds = {name: one.kinds for name, one in discover().items()}
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._held: frozenset[int] = frozenset()
        self._judging = asyncio.Lock()
        self._retry: dict[str, float] = {}
        self._counted: tuple[float, int] | None = None

    def hold(self, partitions: frozenset[int]) -> None:
        """Run only actions of models on these partitions of the control topics."""
        self._held = partitions

    def _holds(self, model: str) -> bool:
        return self._site.place(model) in self._held

    # --- proposing ---

    async def propose(self, incident: Incident) -> None:
        """Say what the policy wants done about an incident, before anything is done."""
        site = self._site
        if site.outdated(incident):
            return
        if incident.state in FINISHED:
            await self._give_up(incident)
            return
        involved = {item.subject: item for item in incident.subjects}
        dry = site.settings.remediation.dry_run
        wanted: list[tuple[Action, str]] = []
        for intent in plan(incident, site.settings.policy, self._kinds, site.actions):
            known, item = site.actions.get(intent.id), involved[intent.subject]
            if known is not None and (dry or not known.figures.get("dry_run")):
                continue
            action = Action(
                id=intent.id, action=intent.action, model=incident.model, incident=incident.id,
                subject=intent.subject, outcome="proposed", automatic=not intent.approval, by=ROLE,
                reason="", time=site.now(), version=known.version if known else 0,
                figures={
                    "first_evidence_ms": to_millis(item.first_seen), "order": intent.order,
                    "approval": "required" if intent.approval else "none", **about(item.opened),
                },
            )  # fmt: skip
            reason = f"policy of {incident.family} at severity {incident.severity}"
            if intent.attempt:
                reason += f"; it began again after attempt {intent.attempt} was done"
            if dry:
                reason = f"dry run: {await self._would(action)}"
            wanted.append((action, reason))
        figures: dict[str, Any] = {"dry_run": True} if dry else {}
        await _at_once(site.report(one, "proposed", why, **figures) for one, why in wanted)
        self.wake()

    async def _would(self, action: Action) -> str:
        try:
            return f"would {(await self._remedies[action.action].plan(action)).what}"
        except Exception as error:  # noqa: BLE001 - see _why
            return f"would fail: {_why(error)}"

    async def _give_up(self, incident: Incident) -> None:
        await _at_once(
            self._site.report(action, "denied", f"the incident is {incident.state}")
            for action in list(self._site.actions.values())
            if action.incident == incident.id
            and action.outcome in {"proposed", "awaiting_approval"}
        )

    async def tick(self) -> None:
        """Deny what has waited too long for a person, and look for work; call it often.

        Raises
        ------
        Exception
            What ended a lane; there should be none.
        """
        await self._expire()
        for lane in self._lanes.values():
            if lane.done() and not lane.cancelled():
                lane.result()
        self.wake()

    async def _expire(self) -> None:
        limit, now = self._site.settings.remediation.approval_timeout, self._site.now()
        # Who overtakes one has decided otherwise, and that is as good.
        with contextlib.suppress(Overtaken):
            await _at_once(
                self._site.report(action, "denied", f"nobody approved it within {limit:g} s")
                for action in list(self._site.actions.values())
                if action.outcome == "awaiting_approval"
                and self._holds(action.model)
                and (now - action.time).total_seconds() >= limit
            )

    # --- running ---

    def wake(self) -> None:
        """Have each lane look for work."""
        for model in {a.model for a in self._site.actions.values() if a.outcome not in FINAL}:
            news = self._news.setdefault(model, asyncio.Event())
            news.set()
            if model not in self._lanes or self._lanes[model].done():
                self._lanes[model] = asyncio.create_task(self._lane(model, news))

    async def stop(self) -> None:
        """Leave off in the middle: whoever comes next goes on from there."""
        lanes = list(self._lanes.values())
        self._lanes.clear()
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    async def _lane(self, model: str, news: asyncio.Event) -> None:
        while True:
            action = self._next(model)
            if action is None:
                news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY):  # by then one may be tried again
                        await news.wait()
                continue
            try:
                await self._run(action)
            except TransientError as error:
                logger.warning("%s of %s waits: %s", action.action, action.subject.id, error)
                self._retry[action.id] = self._site.clock() + RETRY
            else:
                self._retry.pop(action.id, None)

    def _next(self, model: str) -> Action | None:
        if not self._holds(model) or self._site.settings.remediation.dry_run:
            return None
        ready = turns.ready(one for one in self._site.actions.values() if one.model == model)
        able = (a for a in ready if a.action in self._remedies and not a.figures.get("dry_run"))
        now = self._site.clock()
        return turns.first(able, lambda action: self._retry.get(action.id, 0.0) > now)

    async def _run(self, action: Action) -> None:
        remedy, site = self._remedies[action.action], self._site
        try:
            if action.outcome == "proposed":
                begun = await self._begin(action, remedy)
                if begun is None:
                    return
                action = begun
            result = await remedy.apply(action)
        except TransientError:
            raise
        except Exception as error:  # noqa: BLE001 - see _why
            await site.report(action, "failed", _why(error))
        else:
            await site.report(action, "done", result.what, **result.figures)
        self.wake()

    async def _begin(self, action: Action, remedy: Remedy) -> Action | None:
        """Plan it, ask the guards, and say that it runs; None if it does not."""
        site = self._site
        if action.incident is not None and site.finished(action.incident):
            await site.report(action, "denied", "the incident is over")
            return None
        if turns.undone(action, site.actions.values()):
            await site.report(action, "denied", "what had to be done before it was denied")
            self.wake()
            return None
        check_target(remedy.request(action, Plan("", {})))
        found = await remedy.plan(action)
        if not found.needed:
            await site.report(action, "done", found.what, needed=False)
            self.wake()
            return None
        if action.figures.get("approval") == "required":
            # Only now: who approves must see what would be done, and is not asked for nothing.
            reason = f"the policy wants a person's approval: {found.what}"
            await site.report(action, "awaiting_approval", reason, **found.figures)
            return None
        try:
            # Two that are judged at once would not see each other: the guards know what runs.
            async with self._judging if action.automatic else contextlib.nullcontext():
                await self._guard(remedy, action, found)
                if site.actions[action.id] is not action:
                    return None  # a person denied it meanwhile
                asked = site.clock()
                action = await site.report(action, "running", found.what, **found.figures)
            if action.automatic and len(self._held) < site.partitions["incidents"]:
                await self._guard_again(remedy, action, found, site.clock() - asked)
        except GuardRefused as error:
            await site.report(action, "awaiting_approval", f"guard: {error}", **found.figures)
            return None
        return action

    async def _guard_again(self, remedy: Remedy, begun: Action, found: Plan, took: float) -> None:
        """Judge what runs by what other workers began at the same moment."""
        await asyncio.sleep(SETTLE)
        # Who was slow to say it may not have been seen by those who began after it.
        time = begun.time if took < SETTLE else datetime.max.replace(tzinfo=UTC)
        await self._guard(remedy, begun, found, (time, begun.id))

    async def _guard(
        self, remedy: Remedy, action: Action, found: Plan,
        begun: tuple[datetime, str] | None = None,
    ) -> None:  # fmt: skip
        request, site = remedy.request(action, found), self._site
        models = len(site.settings.models)
        try:
            site.ledger.check(
                request, now=site.now(), population=Population(models, 1), begun=begun
            )
        except GuardRefused as error:
            if request.action != "quarantine" or not str(error).startswith("rate"):
                raise
            # Only now does it matter how many sources there are, and counting them costs time.
            many = Population(models, await self._active())
            site.ledger.check(request, now=site.now(), population=many, begun=begun)

    async def _active(self) -> int:
        """How many sources there are, counted at most once in `COUNT_SECONDS`."""
        if self._counted is None or self._site.clock() - self._counted[0] >= COUNT_SECONDS:
            self._counted = (self._site.clock(), await self._sources())
        return self._counted[1]

    async def _sources(self) -> int:
        """How many sources sent samples within the last hour."""
        since = to_millis(max(self._site.now() - timedelta(hours=1), from_millis(0)))
        found: set[str] = set()
        async for record in process.since(self._site.settings, "summaries", since):
            try:
                summary = Summary.decode(record.value)
            except NNSecError as error:
                logger.debug("a summary that cannot be read: %s", error)
                continue
            if summary.kind == "sample":
                found.update(summary.subjects)
        return len(found)


async def _at_once(reports: Iterable[Awaitable[Action]]) -> None:
    """Say them all in one round trip; raises the first error when all are through."""
    for said in await asyncio.gather(*reports, return_exceptions=True):
        if isinstance(said, BaseException):
            raise said


def _why(error: Exception) -> str:
    """Why an action failed, in words.

    Nothing that an action meets may end the worker: its proposal stands in the log, so that every
    restart would meet it again, and nothing else would ever be done.
    """
    if isinstance(error, NNSecError):
        return str(error)
    logger.error("an action met what it should not", exc_info=error)
    return f"{type(error).__name__}: {error}"
