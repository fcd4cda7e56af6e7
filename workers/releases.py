"""Releasing a checkpoint by hand: the signed statement that a model begins with."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal
from uuid import uuid5

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from nnsec.trust.keys import PrivateKey
from schemas import headers
from schemas.model_statement import ModelStatement

ROLE = "release"
VALID = timedelta(hours=1)
"""Workers must read a statement within; what was activated in its time goes on counting."""
PHASES: tuple[Literal["prepare", "activate"], ...] = ("prepare", "activate")


async def release(
    settings: Settings, *, model: str, version: int, digest: str, key: PrivateKey, reason: str,
    now: datetime,
) -> ModelStatement:  # fmt: skip
    """Sign and publish that a checkpoint serves: epoch 1, or the epoch after the present one.

    Waits for a broker that is away.

    Parameters
    ----------
    digest:
        Of the checkpoint, in hex.
    key:
        A release key.

    Returns
    -------
    ModelStatement
        The one that activates.

    Raises
    ------
    ConfigError
        If the workers of this configuration would not trust the key.
    """
    trusted = tuple(keys.load_public(path) for path in settings.trust.release_keys)
    if key.id not in {one.id for one in trusted}:
        raise ConfigError(
            f"the public half of this key (id {key.id[:16]}…) is not among the {len(trusted)} "
            "[trust] release_keys, so no worker would believe it; add its .pub file there"
        )
    logs = await kafka.declare(settings, now=now)
    records = [record.value async for record in kafka.read_to_end(settings, ("models",))]
    standing = statements.fold(records, trusted).models.get(model, statements.Standing())
    said = [
        ModelStatement(
            model=model, epoch=standing.epoch + 1, phase=phase, version=version, digest=digest,
            reason=reason, issued=now, expires=now + VALID,
        )
        for phase in PHASES
    ]  # fmt: skip
    async with kafka.publisher(settings) as publish:
        for statement in said:
            name = uuid5(logs["models"], f"{model}/{statement.epoch}/{statement.phase}")
            about = headers.event_headers("model", id=str(name), source_role=ROLE, time=now)
            envelope = statements.sign_statement(statement, key)
            await publish(Out("models", envelope, model.encode(), about))
    return said[-1]
