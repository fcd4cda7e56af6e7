"""Commands: signed by an operator, valid for a while, and good for one use."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime
from typing import NamedTuple

from nnsec.errors import Expired, RollbackRefused
from nnsec.trust import dsse
from nnsec.trust.keys import PrivateKey, PublicKey
from schemas.command import Command


class Opened(NamedTuple):
    """A command, and the id of the operator's key that signed it."""

    command: Command
    key_id: str


def sign_command(command: Command, key: PrivateKey) -> bytes:
    """The record value that orders it, signed by an operator key."""
    return dsse.sign(dsse.COMMAND, command.encode(), key)


def open_command(
    envelope: bytes | None,
    keys: Sequence[PublicKey],
    now: datetime,
    seen: Container[str] = (),
) -> Opened:
    """Read a command that may be carried out.

    Parameters
    ----------
    envelope:
        A record value of ``commands``; hostile.
    keys:
        The trusted operator keys.
    now:
        Reference time.
    seen:
        Ids of commands that were carried out before. The caller adds the id once the effect is
        durable, not before, or a command interrupted by a crash would be lost.

    Raises
    ------
    BadSignature
        If no trusted key signed it.
    SchemaError
        If it is signed but is no command.
    Expired
        If ``now`` is not before its end.
    RollbackRefused
        If it was carried out before.
    """
    verified = dsse.verify(envelope, dsse.COMMAND, keys)
    command = Command.decode(verified.payload)
    if now >= command.expires:
        raise Expired(
            f"command {command.id} ({command.kind}) expired at {command.expires.isoformat()}; "
            "send a new one"
        )
    if command.id in seen:
        raise RollbackRefused(f"command {command.id} ({command.kind}) was carried out before")
    return Opened(command, verified.key_id)
