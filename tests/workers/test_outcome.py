"""The outcome of an order: its own action, its dead letter, or what it decides; nothing else."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from nnsec.adapters.records import Record
from nnsec.errors import SchemaError
from schemas.action import Action
from schemas.alert import Subject
from schemas.dead_letter import dead_letter
from tests.workers.stage import T0, command, dismissed, incident
from workers.outcome import Watch

OPEN = incident("s1")


def action(name: str, outcome: str, version: int = 1, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": name, "action": "quarantine", "model": "digits", "incident": OPEN.id,
        "subject": Subject(kind="source", id="s1"), "outcome": outcome, "automatic": False,
        "by": "the key", "reason": f"it is {outcome}", "time": T0, "version": version,
    }  # fmt: skip
    return Record("actions", 0, 0, 0, b"digits", Action(**values | changes).encode())


def letter(value: bytes) -> Record:
    key, value_, headers = dead_letter(
        b"digits", value, (), log=UUID(int=1), topic="commands", partition=0, offset=0,
        timestamp=0, error=SchemaError("nobody signed it", field="value"), attempts=1, limit=2**20,
    )  # fmt: skip
    return Record("dead-letters", 0, 0, 0, key, value_, tuple(headers))


def said(kind: str, *records: Record, target: str = "s1") -> tuple[str, str]:
    ordered = command(kind, target, id="1")
    watch = Watch(ordered, b"the order", "the key")
    for record in records:
        watch.learn(record)
    return watch.outcome.state, watch.outcome.reason


OWN = "command-1"


@pytest.mark.parametrize(
    ("records", "state", "reason"),
    [
        ([], "pending", "no worker has taken it yet; it is valid until 2"),
        ([action("command-2", "done"), letter(b"another order")], "pending", "no worker"),
        ([Record("actions", 0, 0, 0, b"digits", b"hostile")], "pending", "no worker"),
        ([letter(b"the order")], "refused", "nobody signed it"),
        ([action(OWN, "proposed")], "running", "proposed: it is proposed"),
        ([action(OWN, "running")], "running", "running: it is running"),
        ([action(OWN, "running"), action(OWN, "done", 2)], "done", "it is done"),
        ([action(OWN, "done", 2), action(OWN, "failed", 2)], "done", "it is done"),
        ([action(OWN, "running", 2), action(OWN, "failed", 1)], "running", "running: "),
        ([action(OWN, "failed")], "refused", "it is failed"),
        ([action(OWN, "denied")], "refused", "it is denied"),
        ([action(OWN, "proposed", figures={"dry_run": True})], "refused", "the remediation worker"),
    ],
)
def test_an_order_has_the_outcome_of_its_action(
    records: list[Record], state: str, reason: str
) -> None:
    """The first record of a version counts, as for the workers; others' records do not."""
    found = said("quarantine", *records)
    assert found[0] == state
    assert found[1].startswith(reason)


@pytest.mark.parametrize(
    ("kind", "outcome", "changes", "state"),
    [
        ("approve", "proposed", {}, "done"),
        ("approve", "proposed", {"by": "remediation"}, "refused"),
        ("approve", "proposed", {"incident": UUID(int=5)}, "refused"),
        ("approve", "denied", {}, "refused"),
        ("deny", "denied", {}, "done"),
        ("deny", "proposed", {}, "refused"),
    ],
)
def test_a_decision_is_done_if_an_action_heard_it(
    kind: str, outcome: str, changes: dict[str, Any], state: str
) -> None:
    """The receipt alone says only that the order came."""
    told = [action("a-1", outcome, **changes), action(OWN, "done")]
    assert said(kind, *told, target=str(OPEN.id))[0] == state
    assert said(kind, action(OWN, "done"), target=str(OPEN.id))[0] == "refused"


def test_none_names_no_action() -> None:
    """An unset variable of a script decides nothing, though what was ordered has no incident."""
    decided = action("a-1", "proposed", incident=None)
    assert said("approve", decided, action(OWN, "done"), target="None")[0] == "refused"


def test_a_dismissal_is_done_when_the_incident_is() -> None:
    """The receipt is not enough: the correlator carries it out."""
    over = Record("incidents", 0, 0, 0, b"", dismissed(OPEN).encode())
    still = Record("incidents", 0, 0, 0, b"", OPEN.encode())
    target = str(OPEN.id)
    assert said("dismiss", action(OWN, "done"), still, target=target)[0] == "running"
    assert said("dismiss", over, action(OWN, "done"), target=target)[0] == "done"
    assert said("dismiss", over, action(OWN, "done"), target=str(UUID(int=5)))[0] == "running"
    assert said("approve", over, target=target)[0] == "pending"
