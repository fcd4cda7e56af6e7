"""Model statements: signed, opened, and folded to the checkpoint that serves each model.

The fold is pure. Epochs only grow: an old statement that is sent again changes nothing, and a
rollback to an older *version* is a new statement with a higher *epoch*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from nnsec.adapters.records import Record
from nnsec.errors import Expired, NNSecError, RollbackRefused, SchemaError, TrustError
from nnsec.trust import dsse
from nnsec.trust.keys import PrivateKey, PublicKey
from schemas.base import from_millis
from schemas.model_statement import ModelStatement


def sign_statement(statement: ModelStatement, key: PrivateKey) -> bytes:
    """The record value that says so, signed by a release key."""
    return dsse.sign(dsse.MODEL_STATEMENT, statement.encode(), key)


def open_statement(
    envelope: bytes | None, keys: Sequence[PublicKey], now: datetime
) -> ModelStatement:
    """Read a statement that a release key signed.

    Parameters
    ----------
    envelope:
        A record value of ``models``; hostile.
    keys:
        The trusted release keys.
    now:
        Reference time.

    Raises
    ------
    BadSignature
        If no trusted key signed it.
    Expired
        If ``now`` is not before its end.
    SchemaError
        If it is signed but is no statement.
    """
    statement = ModelStatement.decode(dsse.verify(envelope, dsse.MODEL_STATEMENT, keys).payload)
    if now >= statement.expires:
        raise Expired(
            f"the statement of epoch {statement.epoch} of model {statement.model!r} "
            f"expired at {statement.expires.isoformat()}"
        )
    return statement


def read_statement(record: Record, keys: Sequence[PublicKey]) -> ModelStatement:
    """Open a record of ``models``, as each reader of that topic must; raises as `open_statement`.

    It is judged by when the broker took it, so that all readers agree, whenever they read: what
    came too late never counts, and what was activated in its time counts until replaced.
    """
    return open_statement(record.value, keys, from_millis(record.timestamp))


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds for one model.

    Parameters
    ----------
    prepared:
        The newest statement to prepare that is not activated yet.
    activated:
        The statement that serves.
    """

    prepared: ModelStatement | None = None
    activated: ModelStatement | None = None

    @property
    def epoch(self) -> int:
        """The highest epoch seen; 0 for none."""
        return max((one.epoch for one in (self.prepared, self.activated) if one), default=0)

    def accept(self, statement: ModelStatement) -> Standing:
        """Fold one validly signed statement of the same model.

        Raises
        ------
        RollbackRefused
            For an epoch that is over, a repetition, or a second checkpoint in one epoch.
        """
        if statement.epoch > self.epoch:
            if statement.phase == "prepare":
                return replace(self, prepared=statement)
            return Standing(None, statement)
        prepared = self.prepared
        if prepared is None or statement.epoch != prepared.epoch or statement.phase == "prepare":
            raise RollbackRefused(
                f"epoch {statement.epoch} ({statement.phase}) of model {statement.model!r} is not "
                f"above epoch {self.epoch}, which was already seen"
            )
        if (statement.version, statement.digest) != (prepared.version, prepared.digest):
            raise RollbackRefused(
                f"epoch {statement.epoch} of model {statement.model!r} was prepared with version "
                f"{prepared.version} and cannot activate version {statement.version}"
            )
        return Standing(None, statement)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A statement without effect: its place in the sequence, and why."""

    index: int
    error: NNSecError


@dataclass(frozen=True, slots=True)
class Folded:
    """What a sequence of records comes to."""

    models: Mapping[str, Standing]
    ignored: tuple[Ignored, ...]


def fold(records: Iterable[Record], keys: Sequence[PublicKey]) -> Folded:
    """Fold the topic ``models`` in log order.

    Parameters
    ----------
    records:
        Its records, oldest first.
    keys:
        The trusted release keys.
    """
    models: dict[str, Standing] = {}
    ignored: list[Ignored] = []
    for index, record in enumerate(records):
        try:
            statement = read_statement(record, keys)
            standing = models.get(statement.model, Standing())
            models[statement.model] = standing.accept(statement)
        except (TrustError, SchemaError) as error:
            ignored.append(Ignored(index, error))
    return Folded(MappingProxyType(models), tuple(ignored))
