"""Quarantining a source of training samples, and letting it go again.

Three steps: say it; wait until every partition of ``training.samples`` is held by a worker that has
heard it, so that nothing more of the source is accepted; then revoke what was accepted before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import ClassVar
from uuid import UUID, uuid5

from nnsec.adapters.records import Out, Record
from nnsec.errors import SchemaError
from schemas.action import Action
from schemas.base import from_millis, to_millis
from schemas.outcome import MOST_ROWS, decode_outcome, encode_outcome
from schemas.revocation import MAX_POSITIONS, Revocation
from schemas.source import Source, SourceState
from schemas.topics import DAY_MS
from workers import process
from workers.actions import Impossible, Plan, Remedy, Result

SAMPLES = "training.samples"
SOURCE_QUARANTINED = "source_quarantined"
"""A reason for all that a quarantined source sends; the only one where the screens found none."""
HEAR_SECONDS = 60.0
"""Within which every partition must be held by a live worker that has heard the statement."""

Place = tuple[int, int, int]
"""(partition, offset, row) of a sample in ``training.samples``."""


class _OfSource(Remedy):
    """What the actions on a source have in common."""

    def _stood(self, action: Action) -> int:
        """The version of the newest statement about the source; 0 for none."""
        stands = self.site.sources.get(action.subject.id)
        return stands.version if stands else 0

    def _stands(self, action: Action, state: SourceState) -> Source | None:
        """The statement that says so: its own, or one that is newer than its plan; None if none.

        Raises
        ------
        Impossible
            If another action has said otherwise since it was planned: that counts.
        """
        stands = self.site.sources.get(action.subject.id)
        if stands is None:
            return None
        if (stands.state, stands.incident) == (state, _cause(action)):
            return stands
        if stands.version <= int(action.figures.get("stood", 0)):
            return None
        if stands.state != state:
            raise Impossible(
                f"overtaken: {stands.source} is {stands.state} since version {stands.version} of "
                f"sources, by {stands.incident or 'nobody named'}; approve the action to try again"
            )
        return stands

    async def _say(self, action: Action, state: SourceState) -> int:
        """Publish the statement unless it stands; return its version when all have heard it."""
        stands = self._stands(action, state)
        if stands is None:
            stands = await self.site.say_source(
                action.subject.id, state, action.reason, _cause(action),
                after=int(action.figures.get("stood", 0)),
            )  # fmt: skip
        version, site = stands.version, self.site
        partitions = range(site.partitions[SAMPLES])
        if not await site.until(
            lambda: not site.board.uninformed(version, SAMPLES, partitions, site.clock()),
            HEAR_SECONDS,
        ):
            left = site.board.uninformed(version, SAMPLES, partitions, site.clock())
            raise Impossible(
                f"{SAMPLES} partitions {', '.join(map(str, left))} are held by no live worker "
                f"that has heard of it; approve the action to try again"
            )
        self._stands(action, state)
        return version

    async def _records(self, topic: str, source: str, since: int) -> list[Record]:
        key = source.encode()
        return [r async for r in process.since(self.site.settings, topic, since) if r.key == key]

    def _name(self, action: Action, *parts: object) -> str:
        return str(
            uuid5(self.site.logs["training.revocations"], "/".join(map(str, (action.id, *parts))))
        )


class Quarantine(_OfSource):
    """Accept nothing more of a source, and revoke what was accepted of it lately."""

    name: ClassVar[str] = "quarantine"
    kinds: ClassVar[frozenset[str]] = frozenset({"source"})

    async def plan(self, action: Action) -> Plan:
        """Since when what was accepted is to be revoked.

        Raises
        ------
        Impossible
            If the target is no source.
        """
        if action.subject.kind != "source":
            raise Impossible(f"a {action.subject.kind} cannot be quarantined, only a source")
        since = action.figures.get("since_ms")  # what is tried again revokes no less than before
        if not isinstance(since, int):
            first = action.figures.get("first_evidence_ms")
            evidence = first if isinstance(first, int) else to_millis(action.time)
            window = int(self.site.settings.remediation.revoke_window_days * DAY_MS)
            since = max(evidence - window, 0)
        what = (
            f"quarantine {action.subject.id} and revoke what was accepted since "
            f"{from_millis(since):%F %T}Z"
        )
        return Plan(what, {"since_ms": since, "stood": self._stood(action)})

    async def apply(self, action: Action) -> Result:
        """Do the three steps; positions that are revoked already are not revoked again."""
        version = await self._say(action, "quarantined")
        source, log = action.subject.id, self.site.logs[SAMPLES]
        accepted = await self._records("training.accepted", source, int(action.figures["since_ms"]))
        places = await asyncio.to_thread(lambda: sorted(set(positions(accepted, log))))
        gone = standing(self.site.revocations, log)
        left = [place for place in places if place not in gone]
        for start in range(0, len(left), MAX_POSITIONS):
            part = left[start : start + MAX_POSITIONS]
            self._stands(action, "quarantined")
            await self.site.say_revocation(
                Revocation(
                    id=self._name(action, *part[0]), model=action.model, source=source,
                    incident=str(action.incident or ""), log=log, positions=tuple(part),
                    reason=action.reason, time=self.site.now(),
                )
            )  # fmt: skip
        self._stands(action, "quarantined")
        return Result(
            f"{source} is quarantined, {len(places)} samples revoked",
            {"revoked": len(places), "source_version": version},
        )


class Release(_OfSource):
    """Trust a source again: withdraw its revocations, and accept what was held back."""

    name: ClassVar[str] = "release"

    async def plan(self, action: Action) -> Plan:
        """Releasing is for a source that is quarantined now, or was until this release began."""
        stands = self.site.sources.get(action.subject.id)
        if stands is None or (stands.state != "quarantined" and stands.incident != _cause(action)):
            return Plan(f"not needed: {action.subject.id} is not quarantined", {}, needed=False)
        return Plan(f"release {action.subject.id}", {"stood": stands.version})

    async def apply(self, action: Action) -> Result:
        """Say it, withdraw, and accept what was held back for the source alone, each row once.

        What a screen found suspicious by itself stays in quarantine, as of any source.
        """
        await self._say(action, "trusted")
        source = action.subject.id
        valid: dict[tuple[Place, ...], Revocation] = {}
        for one in self.site.revocations:  # oldest first: the last word counts
            if one.source == source and one.withdrawn:
                valid.pop(one.positions, None)
            elif one.source == source:
                valid[one.positions] = one
        for one in valid.values():
            said = one.model_copy(
                update={
                    "id": self._name(action, one.id), "withdrawn": True,
                    "reason": action.reason, "time": self.site.now(),
                }
            )  # fmt: skip
            self._stands(action, "trusted")
            await self.site.say_revocation(said)
        released = await self._accept(action)
        return Result(f"{source} is trusted again, {released} records released",
                      {"released": released})  # fmt: skip

    async def _accept(self, action: Action) -> int:
        source, log = action.subject.id, self.site.logs[SAMPLES]
        accepted = await self._records("training.accepted", source, 0)
        records = await self._records("training.quarantine", source, 0)
        # Whoever used the name decides how many there are; each takes 0.1 ms, more with many rows.
        done, held = await asyncio.to_thread(_sorted_out, accepted, records, log)
        released = 0
        for record, spared in held:
            if left := spared - done:
                self._stands(action, "trusted")
                await self.site.publish(_accepted(record, {row for _, _, row in left}))
                done |= left
                released += 1
        return released


class Drop(_OfSource):
    """Keep a source's samples out for good: it stays quarantined, and nothing is released."""

    name: ClassVar[str] = "drop"

    async def plan(self, action: Action) -> Plan:
        """Dropping is always possible."""
        return Plan(f"drop the samples of {action.subject.id}", {"stood": self._stood(action)})

    async def apply(self, action: Action) -> Result:
        """Say that it is quarantined, whoever said otherwise before."""
        await self._say(action, "quarantined")
        return Result(f"the samples of {action.subject.id} stay out", {})


def _cause(action: Action) -> str:
    """What a statement names as its cause, by which an action knows its own again."""
    return str(action.incident or action.id)


def positions(records: Iterable[Record], log: UUID) -> Iterable[Place]:
    """Where the rows of accepted records lie in ``training.samples``, from their headers."""
    for record in records:
        found = {k.lower(): (v or b"").decode("ascii", "replace") for k, v in record.headers}
        if found.get("nnsec-log") != str(log):
            continue  # of a log that is no more: its positions mean something else now
        try:
            place = int(found["nnsec-partition"]), int(found["nnsec-offset"])
            rows = [int(row) for row in found["nnsec-rows"].split(",")]
        except (KeyError, ValueError):
            continue  # not written by the screen
        yield from ((*place, row) for row in rows)


def standing(revocations: Iterable[Revocation], log: UUID) -> frozenset[Place]:
    """The places of one log that are revoked; revocations oldest first, the last word counts."""
    found: set[Place] = set()
    for one in revocations:
        if one.log == log and one.withdrawn:
            found.difference_update(one.positions)
        elif one.log == log:
            found.update(one.positions)
    return frozenset(found)


def _sorted_out(
    accepted: list[Record], records: list[Record], log: UUID
) -> tuple[set[Place], list[tuple[Record, set[Place]]]]:
    """What is not to be released, and each held record with its rows that may be."""
    done = set(positions(accepted, log))
    held = [(record, _for_source(record, log)) for record in records]
    for record, spared in held:
        # One that was screened twice, around the quarantine: what was found in it counts.
        done.update(set(positions([record], log)) - spared)
    return done, held


def _for_source(record: Record, log: UUID) -> set[Place]:
    """The rows that are held because of their source, and in which the screens found nothing."""
    places = set(positions([record], log))
    reasons = _reasons(record)
    if SOURCE_QUARANTINED not in reasons:
        return set()
    if len(reasons) == 1:
        return places
    try:
        outcome = decode_outcome(record.value, record.headers, max_rows=MOST_ROWS)
    except SchemaError:
        return set()  # not written by the screen
    rows = zip(outcome.rows, outcome.reasons, strict=True)
    spared = {row for row, found in rows if found == (SOURCE_QUARANTINED,)}
    return {place for place in places if place[2] in spared}


def _accepted(record: Record, rows: Collection[int]) -> Out:
    """Write what is released of a held record; one that is released whole stays as it is."""
    found = {name.lower(): value or b"" for name, value in record.headers}
    if len(_reasons(record)) == 1 and len(rows) == len(found["nnsec-rows"].split(b",")):
        kept = tuple((k, v) for k, v in record.headers if k.lower() != "nnsec-reasons")
        return Out("training.accepted", record.value, record.key, kept)
    outcome = decode_outcome(record.value, record.headers, max_rows=MOST_ROWS)
    kept_rows = [index for index, row in enumerate(outcome.rows) if row in rows]
    value, headers = encode_outcome(
        replace(
            outcome, rows=tuple(outcome.rows[index] for index in kept_rows),
            sample=outcome.sample.take(kept_rows), verdict="accepted",
            reasons=((),) * len(kept_rows), figures=(),
        )
    )  # fmt: skip
    return Out("training.accepted", value, record.key, headers)


def _reasons(record: Record) -> list[str]:
    found = {name.lower(): value or b"" for name, value in record.headers}
    return found.get("nnsec-reasons", b"").decode("ascii", "replace").split(",")
