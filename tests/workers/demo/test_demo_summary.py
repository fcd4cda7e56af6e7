"""The demo's arithmetic: every figure counted by position, each by a case of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from schemas.alert import Alert, Subject
from schemas.incident import Incident, IncidentAction
from schemas.threats import Threat, family
from workers.demo.ledger import INPUTS, SAMPLES, Ledger, Scored, SeenAlert, SentInput, SentSample
from workers.demo.summary import problems, summarise

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def predict(version: int, x: Any) -> Any:
    """A checkpoint that sees class 3 everywhere."""
    assert version == 1
    return np.full(len(x), 3)


def made(ledger: Ledger) -> dict[str, Any]:
    return summarise(ledger, dataset="digits", seconds=1.0, predict=predict)


def alert(threat: Threat, subject: str, *offsets: int, kind: Any = "client") -> SeenAlert:
    positions = tuple((INPUTS, 0, offset, 0) for offset in offsets)
    found = Alert(
        id=uuid4(), episode=uuid4(), seq=0, time=NOW, model="digits", model_version="1",
        threat=threat, atlas=(), severity="high", evidence=1.0,
        subject=Subject(kind=kind, id=subject), positions=positions, counts={}, explanation="",
    )  # fmt: skip
    return SeenAlert(found, seen=9.0)


def incident(threat: Threat, *actions: IncidentAction) -> Incident:
    return Incident(
        id=uuid4(), version=1, state="open", model="digits", family=family(threat),
        threats=(threat,), severity="high", subjects=(), first_seen=NOW, last_seen=NOW,
        evidence={}, actions=actions,
    )  # fmt: skip


def rollback(**figures: Any) -> IncidentAction:
    return IncidentAction(
        action="rollback", action_id="a", subject=Subject(kind="model", id="digits"), state="done",
        by="remediation", reason="", time=NOW,
        figures={"from": 2, "to": 1, "verified": True, "seconds": 1.5, **figures},
    )  # fmt: skip


def sent(kind: Any, number: int, client: str = "app", **more: Any) -> SentInput:
    return SentInput(kind, number, client, 3, at=float(number), **more)


def test_what_has_no_outcome_is_lost() -> None:
    """A score or a dead letter is an outcome; nothing else is."""
    ledger = Ledger()
    for offset in range(3):
        ledger.inputs[INPUTS, 0, offset] = sent("honest", offset)
    ledger.scores[INPUTS, 0, 0] = Scored(False, 3, 1, 0.1)
    ledger.dead[INPUTS, 0, 1] = "SchemaError value"
    assert made(ledger)["inputs"] == {"sent": 3, "scored": 1, "dead_lettered": 1, "lost": 1}
    assert "1 inputs were lost" in problems(made(ledger))


def test_an_attack_counts_if_only_the_original_is_right() -> None:
    """Neither one that fails nor one whose original is wrong already is a success."""
    ledger = Ledger()
    black = np.zeros((1, 8, 8), np.uint8)
    for offset, (label, seen, flag) in enumerate([(3, 5, True), (3, 5, False), (3, 3, True),
                                                   (4, 5, True)]):  # fmt: skip
        ledger.inputs[INPUTS, 0, offset] = SentInput(
            "attack", offset, "mallory", label, 0.0, 0.2, black
        )
        ledger.scores[INPUTS, 0, offset] = Scored(flag, seen, 1, 1.0)
    found = made(ledger)["evasion"]
    assert (found["attack_inputs"], found["attack_flagged"]) == (2, 1)
    assert found["by_epsilon"] == {"0.2": [1, 2]}


def test_benign_inputs_are_the_honest_ones_before_the_drift() -> None:
    """A flag on a drifting input is no false positive, on an honest one it is."""
    ledger = Ledger()
    ledger.inputs = {(INPUTS, 0, 0): sent("honest", 0), (INPUTS, 0, 1): sent("drift", 1)}
    ledger.scores = {place: Scored(True, 3, 1, 1.0) for place in ledger.inputs}
    ledger.alerts = {uuid4(): alert("evasion", "app"), uuid4(): alert("evasion", "mallory")}
    found = made(ledger)["evasion"]
    assert (found["benign_inputs"], found["benign_flagged"]) == (1, 1)
    assert (found["honest_clients"], found["honest_clients_accused"]) == (1, 1)


def test_poison_is_caught_by_quarantine_or_revocation() -> None:
    """What is held back for its source alone counts neither as loud nor as caught by sample."""
    ledger = Ledger()
    kinds: list[Any] = ["quiet", "quiet", "loud", "loud", "honest", "honest"]
    for offset, kind in enumerate(kinds):
        ledger.samples[SAMPLES, 0, offset] = SentSample(kind, "s", 0.0)
    ledger.accepted = {(SAMPLES, 0, offset): 0.0 for offset in (0, 1, 4)}
    ledger.revoked = {(SAMPLES, 0, 0)}
    ledger.quarantined = {
        (SAMPLES, 0, 2): ("trigger",), (SAMPLES, 0, 3): ("source_quarantined",),
        (SAMPLES, 0, 5): ("outlier",),
    }  # fmt: skip
    assert made(ledger)["poisoning"] == {
        "poison_samples": 4, "poison_quarantined_or_revoked": 3, "loud_samples": 1,
        "loud_caught_by_sample": 1, "clean_samples": 2, "clean_quarantined": 1,
    }  # fmt: skip
    assert made(ledger)["samples"]["revoked"] == 1


def test_drift_before_its_start_is_a_false_alarm() -> None:
    """The newest input that an alert is about says when it was raised."""
    ledger = Ledger()
    for offset in range(6):
        kind: Any = "drift" if offset >= 3 else "honest"
        ledger.inputs[INPUTS, 0, offset] = sent(kind, offset)
    ledger.alerts = {
        uuid4(): alert("drift", "digits", 1, 2, kind="model"),
        uuid4(): alert("drift", "digits", 3, 5, kind="model"),
    }
    assert made(ledger)["drift"] == {
        "started_at_input": 3, "alarmed_at_input": 5, "false_alarms": 1,
    }  # fmt: skip


def test_a_rollback_that_was_not_needed_is_none() -> None:
    """Only an action that changed what serves is a rollback."""
    ledger = Ledger()
    one = incident("label_flip", rollback(needed=False))
    ledger.incidents = {one.id: one}
    assert not made(ledger)["rollback"]["verified"]
    two = incident("label_flip", rollback())
    ledger.incidents[two.id] = two
    assert made(ledger)["rollback"] == {"from": "2", "to": "1", "verified": True, "seconds": 1.5}


def test_a_missed_attack_is_a_problem() -> None:
    """Every family must have its incident, and the model its rollback."""
    ledger = Ledger()
    threats: list[Threat] = ["evasion", "label_flip", "drift"]
    for threat in threats:
        one = incident(threat, rollback()) if threat == "label_flip" else incident(threat)
        ledger.incidents[one.id] = one
    assert problems(made(ledger)) == []
    for gone in list(ledger.incidents):
        kept = Ledger(incidents={k: v for k, v in ledger.incidents.items() if k != gone})
        assert problems(made(kept))


def test_latency_and_first_alert_are_measured_from_sending() -> None:
    """Scores in ms; the first alert in seconds from the first attack input."""
    ledger = Ledger()
    ledger.inputs[INPUTS, 0, 0] = sent("attack", 2, "mallory", original=np.zeros(1))
    ledger.scores[INPUTS, 0, 0] = Scored(True, 3, 1, 2.05)
    ledger.alerts[UUID(int=0)] = alert("evasion", "mallory")
    found = made(ledger)
    assert found["latency_ms"]["p50"] == pytest.approx(50.0, abs=0.1)
    assert found["seconds_to_first_alert"] == 7.0
