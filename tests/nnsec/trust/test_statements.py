"""Model statements: the highest validly signed epoch holds, whatever else is in the topic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nnsec.adapters.records import Record
from nnsec.errors import BadSignature, Expired, RollbackRefused, SchemaError
from nnsec.trust import dsse, keys
from nnsec.trust.statements import Standing, fold, open_statement, read_statement, sign_statement
from schemas.base import to_millis
from schemas.model_statement import ModelStatement

KEY, STRANGER = keys.generate(), keys.generate()
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def _statement(epoch: int, phase: str, version: int = 1, **fields: Any) -> ModelStatement:
    values: dict[str, Any] = {
        "model": "digits", "epoch": epoch, "phase": phase, "version": version,
        "digest": f"{version:064x}", "reason": "test", "issued": NOW,
        "expires": NOW + timedelta(hours=1),
    }  # fmt: skip
    return ModelStatement(**(values | fields))


def _signed(*args: Any, key: keys.PrivateKey = KEY, **fields: Any) -> bytes:
    return sign_statement(_statement(*args, **fields), key)


def _log(*envelopes: bytes | None, at: datetime = NOW) -> list[Record]:
    """They as the broker took them, at one time."""
    return [Record("models", 0, n, to_millis(at), b"", one) for n, one in enumerate(envelopes)]


def test_a_statement_is_read_back() -> None:
    """What was signed is what is read."""
    statement = _statement(1, "activate")
    assert open_statement(sign_statement(statement, KEY), (KEY.public,), NOW) == statement


def test_a_statement_is_judged_by_when_the_broker_took_it() -> None:
    """What was activated in its time still holds when the topic is read again later."""
    late = NOW + timedelta(hours=1)
    (record,) = _log(_signed(3, "prepare"), at=late)
    with pytest.raises(Expired, match="epoch 3"):
        read_statement(record, (KEY.public,))
    (record,) = _log(record.value, at=late - timedelta(milliseconds=1))
    assert read_statement(record, (KEY.public,)).epoch == 3


def test_signed_nonsense_is_a_schema_error() -> None:
    """A release key's signature does not make a statement of any text."""
    with pytest.raises(SchemaError):
        open_statement(dsse.sign(dsse.MODEL_STATEMENT, b"{}", KEY), (KEY.public,), NOW)


def test_prepared_and_activated_are_tracked_apart() -> None:
    """The old checkpoint serves while the new one is prepared."""
    folded = fold(_log(_signed(1, "activate"), _signed(2, "prepare", 2)), (KEY.public,))
    standing = folded.models["digits"]
    assert standing.activated is not None
    assert standing.prepared is not None
    assert (standing.activated.epoch, standing.prepared.epoch, standing.epoch) == (1, 2, 2)
    assert folded.ignored == ()


def test_a_rollback_is_a_higher_epoch_of_an_older_version() -> None:
    """Versions may go back, epochs may not."""
    log = _log(
        _signed(1, "activate", 1), _signed(2, "prepare", 2), _signed(2, "activate", 2),
        _signed(3, "prepare", 1), _signed(3, "activate", 1),
    )  # fmt: skip
    standing = fold(log, (KEY.public,)).models["digits"]
    assert standing.activated is not None
    assert (standing.activated.epoch, standing.activated.version) == (3, 1)
    assert standing.prepared is None


REFUSED = {
    "replayed prepare": (_signed(2, "prepare", 2), RollbackRefused),
    "replayed activate": (_signed(1, "activate", 1), RollbackRefused),
    "old epoch": (_signed(1, "prepare", 7), RollbackRefused),
    "mix and match": (_signed(2, "activate", 3), RollbackRefused),
    "another digest": (_signed(2, "activate", 2, digest="f" * 64), RollbackRefused),
    "wrong key": (_signed(9, "activate", 9, key=STRANGER), BadSignature),
    "unsigned": (_statement(9, "activate", 9).encode(), BadSignature),
    "no value": (None, BadSignature),
    "expired": (_signed(9, "activate", 9, expires=NOW), Expired),
    "no statement": (dsse.sign(dsse.MODEL_STATEMENT, b"[]", KEY), SchemaError),
    "a command": (dsse.sign(dsse.COMMAND, _statement(9, "activate").encode(), KEY), BadSignature),
}


@pytest.mark.parametrize(("envelope", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_invalid_is_ignored_and_reported(
    envelope: bytes | None, error: type[Exception]
) -> None:
    """The fold is the same with and without it, and says which one it left out."""
    log = [_signed(1, "activate", 1), _signed(2, "prepare", 2)]
    folded = fold(_log(*log, envelope), (KEY.public,))
    assert folded.models == fold(_log(*log), (KEY.public,)).models
    assert [(one.index, type(one.error)) for one in folded.ignored] == [(2, error)]


def test_models_are_folded_apart() -> None:
    """A high epoch of one model hides nothing of another."""
    log = _log(_signed(9, "activate"), _signed(1, "activate", model="other"))
    folded = fold(log, (KEY.public,))
    assert {name: one.epoch for name, one in folded.models.items()} == {"digits": 9, "other": 1}


def test_a_lost_prepare_does_not_stop_an_activation() -> None:
    """An activation names its checkpoint by itself, and drops an older preparation."""
    standing = Standing().accept(_statement(1, "prepare")).accept(_statement(2, "activate", 2))
    assert standing.prepared is None
    assert standing.epoch == 2
