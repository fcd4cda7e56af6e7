"""Commands at the desk of remediation: opened, judged, and turned into actions."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nnsec.adapters.records import Record
from nnsec.errors import RollbackRefused, SchemaError
from nnsec.guards import EVERYTHING, SWITCHES
from nnsec.trust import commands, keys
from nnsec.trust.commands import Opened
from schemas.action import Action
from schemas.alert import Subject
from schemas.base import from_millis
from schemas.command import Command
from workers.site import Site

ON_SOURCE = frozenset({"quarantine", "release", "drop"})
ON_MODEL = frozenset({"rollback", "promote"})

logger = logging.getLogger(__name__)


class Desk:
    """Takes commands, each once, and says on ``actions`` what follows from them.

    Parameters
    ----------
    site:
        Where actions are known and said; read to the end.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._keys = tuple(keys.load_public(p) for p in site.settings.trust.operator_keys)
        self._kinds: Mapping[str, Callable[[Command, str, str], Awaitable[None]]] = {
            "approve": self._decide, "deny": self._decide,
        }  # fmt: skip

    async def take(self, record: Record) -> None:
        """Carry out one record of ``commands``.

        Delivered again (the same position) it does only what is missing.

        Raises
        ------
        TrustError
            If it is unsigned, expired or was used before: without effect.
        SchemaError
            If it is signed, but nothing that can be done.
        """
        place = f"{record.partition}/{record.offset}"
        opened = self._open(record, place)
        if opened is None:
            return
        command, key_id = opened
        await self._kinds.get(command.kind, self._order)(command, key_id, place)
        logger.info(
            "command %s (%s of %s) by key %s", command.id, command.kind, command.target, key_id
        )

    def _open(self, record: Record, place: str) -> Opened | None:
        """Read a command that is to be carried out; None if this very one was."""
        published, site = from_millis(record.timestamp), self._site
        command, key_id = commands.open_command(record.value, self._keys, published)
        known = site.seen.get(command.id)
        if known is None:
            commands.open_command(record.value, self._keys, site.now())
        elif known != place:
            raise RollbackRefused(f"command {command.id} ({command.kind}) was used before")
        elif command.action_id in site.actions:
            return None
        # Else it was begun in time and cut off: the rest follows, though its time may be over.
        if command.model not in site.settings.models and (
            command.kind not in SWITCHES or command.model != EVERYTHING
        ):
            raise SchemaError(f"no model {command.model!r} is configured here", field="model")
        return Opened(command, key_id)

    async def _decide(self, command: Command, key_id: str, place: str) -> None:
        """`approve` or `deny` what waits: one action, or all of an incident."""
        found = [
            action
            for action in self._site.actions.values()
            if action.model == command.model and action.is_meant(command.target)
        ]
        if not found:
            raise SchemaError(
                f"no action or incident {command.target!r} of model {command.model!r} is known",
                field="target",
            )
        by_it: dict[str, Any] = {
            "by": key_id, "automatic": False, "decision": command.id, "decision_at": place,
        }  # fmt: skip
        for action in found:
            if action.figures.get("decision") == command.id:
                continue  # before it was cut off, and what came of that is no matter here
            if command.kind == "approve" and action.outcome in {"awaiting_approval", "failed"}:
                await self._site.report(
                    action, "proposed", f"approved: {command.reason}", approval="given", **by_it
                )
            elif command.kind == "deny" and action.outcome in {"awaiting_approval", "proposed"}:
                await self._site.report(action, "denied", command.reason, **by_it)
        await self._receipt(command, key_id, place)

    async def _order(self, command: Command, key_id: str, place: str) -> None:
        """Everything else: an action of its own, or only its receipt."""
        if command.kind in ON_SOURCE | ON_MODEL:
            subject = (
                Subject(kind="source", id=command.target)
                if command.kind in ON_SOURCE
                else Subject(kind="model", id=command.model)
            )
            ordered = _action(command, key_id, subject, self._site)
            dry = {"dry_run": True} if self._site.settings.remediation.dry_run else {}
            await self._site.report(
                ordered, "proposed", command.reason, by=key_id,
                command=command.id, command_at=place, target=command.target, approval="given",
                **dry,
            )  # fmt: skip
        else:  # the correlator carries out `dismiss`, the guards `halt` and `resume`
            await self._receipt(command, key_id, place)

    async def _receipt(self, command: Command, key_id: str, place: str) -> None:
        subject = Subject(kind="model", id=command.model)
        await self._site.report(
            _action(command, key_id, subject, self._site), "done", command.reason, by=key_id,
            command=command.id, command_at=place, target=command.target,
        )  # fmt: skip


def _action(command: Command, key_id: str, subject: Subject, site: Site) -> Action:
    return Action(
        id=command.action_id, action=command.kind, model=command.model, incident=None,
        subject=subject, outcome="proposed", automatic=False, by=key_id, reason=command.reason,
        time=site.now(),
    )  # fmt: skip
