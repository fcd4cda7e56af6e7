"""Releasing a checkpoint by hand: the signed statement that a model begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import uuid5

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from nnsec.trust.keys import PrivateKey, PublicKey
from nnsec.trust.statements import Standing
from schemas import headers
from schemas.model_statement import ModelStatement

ROLE = "release"
VALID = timedelta(hours=1)
"""Workers must read a statement within; what was activated in its time goes on counting."""
TRIES = 3
"""How often it is said anew when it does not stand: a broker that comes back late costs one."""
PHASES: tuple[Literal["prepare", "activate"], ...] = ("prepare", "activate")


async def release(
    settings: Settings, *, model: str, version: int, digest: str, key: PrivateKey, reason: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ModelStatement:  # fmt: skip
    """Sign and publish that a checkpoint serves: epoch 1, or the epoch after the present one.

    Waits for a broker that is away. What reached the log too late, or behind another release of the
    same epoch, no reader counts: it is said anew.

    Parameters
    ----------
    digest:
        Of the checkpoint, in hex.
    key:
        A release key.
    now:
        The time of day.

    Returns
    -------
    ModelStatement
        The one that activates.

    Raises
    ------
    ConfigError
        If the workers of this configuration would not trust the key.
    TransientError
        If nothing that was said stands.
    """
    trusted = tuple(keys.load_public(path) for path in settings.trust.release_keys)
    if key.id not in {one.id for one in trusted}:
        raise ConfigError(
            f"the public half of this key (id {key.id[:16]}…) is not among the {len(trusted)} "
            "[trust] release_keys, so no worker would believe it; add its .pub file there"
        )
    logs = await kafka.declare(settings, now=now())
    standing, _ = await _standing(settings, model, trusted)
    for _ in range(TRIES):
        epoch = standing.epoch + 1
        async with kafka.publisher(settings) as publish:
            for phase in PHASES:
                issued = now()  # not before the broker has answered
                said = ModelStatement(
                    model=model, epoch=epoch, phase=phase, version=version, digest=digest,
                    reason=reason, issued=issued, expires=issued + VALID,
                )  # fmt: skip
                name = uuid5(logs["models"], f"{model}/{epoch}/{phase}")
                about = headers.event_headers("model", id=str(name), source_role=ROLE, time=issued)
                envelope = statements.sign_statement(said, key)
                await publish(Out("models", envelope, model.encode(), about))
        standing, counted = await _standing(settings, model, trusted, envelope)
        if counted:
            return said
    raise TransientError(
        f"{model}/{version} is not released: {TRIES} times its statements reached the log after "
        f"their end ({VALID} from their issue), or behind another release; see that the clock of "
        "this machine is right, and try again"
    )


async def _standing(
    settings: Settings, model: str, trusted: Sequence[PublicKey], envelope: bytes = b""
) -> tuple[Standing, bool]:
    """What holds for the model, as the log says it to its end, and whether an envelope counted."""
    records = [record async for record in kafka.read_to_end(settings, ("models",))]
    folded = statements.fold(records, trusted)
    ignored = {one.index for one in folded.ignored}
    counted = any(r.value == envelope for i, r in enumerate(records) if i not in ignored)
    return folded.models.get(model, Standing()), counted
