"""Commands: signed, in time, and once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from nnsec.errors import BadSignature, Expired, RollbackRefused, SchemaError
from nnsec.trust import dsse, keys
from nnsec.trust.commands import open_command, sign_command
from schemas.command import Command

KEY, STRANGER = keys.generate(), keys.generate()
NOW = datetime(2026, 1, 2, tzinfo=UTC)
COMMAND = Command(
    id="c-1", kind="rollback", model="digits", target="3", reason="test", issued=NOW,
    expires=NOW + timedelta(minutes=5),
)  # fmt: skip
SIGNED = sign_command(COMMAND, KEY)


def test_a_command_is_opened_with_its_signer() -> None:
    """What was ordered, and by whom."""
    assert open_command(SIGNED, (KEY.public,), NOW) == (COMMAND, KEY.id)


CASES = {
    "wrong key": (sign_command(COMMAND, STRANGER), NOW, (), BadSignature),
    "unsigned": (COMMAND.encode(), NOW, (), BadSignature),
    "no value": (None, NOW, (), BadSignature),
    "of another type": (
        dsse.sign(dsse.MODEL_STATEMENT, COMMAND.encode(), KEY), NOW, (), BadSignature
    ),
    "expired": (SIGNED, COMMAND.expires, (), Expired),
    "replayed": (SIGNED, NOW, {"c-1"}, RollbackRefused),
    "no command": (dsse.sign(dsse.COMMAND, b'{"id":"c-1"}', KEY), NOW, (), SchemaError),
}  # fmt: skip


@pytest.mark.parametrize(("envelope", "now", "seen", "error"), CASES.values(), ids=CASES.keys())
def test_what_must_not_be_carried_out(
    envelope: bytes | None, now: datetime, seen: tuple[str, ...], error: type[Exception]
) -> None:
    """Each way to order what one may not has its error class."""
    with pytest.raises(error):
        open_command(envelope, (KEY.public,), now, seen)
