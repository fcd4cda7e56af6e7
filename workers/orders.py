"""Orders of an operator: signed commands, put on the topic that remediation reads."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from nnsec.trust.keys import PrivateKey
from schemas.command import Command, CommandKind
from schemas.headers import event_headers
from workers.releases import check_trusted

VALID = timedelta(minutes=10)
"""An order that nobody took by then is void, so that none waits for a bad moment."""


async def order(
    settings: Settings, kind: CommandKind, *, model: str, target: str, reason: str,
    key: PrivateKey, now: datetime,
) -> Command:  # fmt: skip
    """Sign and publish one command; returns when the broker has acknowledged it.

    Parameters
    ----------
    target:
        What it is about: an incident, an action's id, a source, a version; see `Command`.
    key:
        An operator key.

    Raises
    ------
    ConfigError
        If the workers of this configuration would not trust the key.
    """
    trusted = tuple(keys.load_public(path).id for path in settings.trust.operator_keys)
    check_trusted(key, trusted, "operator_keys")
    command = Command(
        id=str(uuid.uuid4()), kind=kind, model=model, target=target, reason=reason,
        issued=now, expires=now + VALID,
    )  # fmt: skip
    await kafka.declare(settings, now=now)
    about = event_headers("command", id=command.id, source_role="operator", time=now)
    async with kafka.publisher(settings) as publish:
        await publish(Out("commands", sign_command(command, key), model.encode(), about))
    return command
