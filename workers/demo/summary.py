"""The demo's result: what was sent against what was found, as figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.incident import Incident
from schemas.threats import family
from workers.demo.ledger import BY_VERDICT, INPUTS, SAMPLES, Ledger, Place, SeenAlert

Predict = Callable[[int, NDArray[Any]], NDArray[np.int64]]
"""(version, (n, *shape) inputs) to (n,) classes by that checkpoint."""
FAMILIES = ("evasion", "poisoning", "drift")
Summary = dict[str, Any]


def summarise(ledger: Ledger, *, dataset: str, seconds: float, predict: Predict) -> Summary:
    """Count everything once, by position.

    Parameters
    ----------
    seconds:
        How long the demo took.
    predict:
        What a checkpoint makes of inputs: it says which attacks succeeded.
    """
    inputs, samples = _inputs(ledger), _samples(ledger)
    return {
        "dataset": dataset,
        "seconds_total": round(seconds, 1),
        "seconds_to_first_alert": _to_first_alert(ledger),
        "inputs": inputs,
        "samples": samples,
        "evasion": _evasion(ledger, predict),
        "poisoning": _poisoning(ledger),
        "drift": _drift(ledger),
        "incidents": [_incident(one) for one in _by_time(ledger)],
        "rollback": _rollback(ledger),
        "latency_ms": _latency(ledger),
    }


def problems(summary: Mapping[str, Any]) -> list[str]:
    """What makes the demo a failure: something lost, an attack missed, or no rollback."""
    lost = {what: summary[what]["lost"] for what in ("inputs", "samples")}
    found = [f"{number} {what} were lost" for what, number in lost.items() if number]
    threats = {family(one["threat"]) for one in summary["incidents"]}
    found += [f"no incident of the family {name}" for name in FAMILIES if name not in threats]
    if not summary["rollback"]["verified"]:
        found.append("the model was not rolled back")
    return found


def _inputs(ledger: Ledger) -> Summary:
    sent = ledger.inputs
    scored = sum(place in ledger.scores for place in sent)
    dead = sum(place in ledger.dead for place in sent)
    lost = sum(place not in ledger.scores and place not in ledger.dead for place in sent)
    return {"sent": len(sent), "scored": scored, "dead_lettered": dead, "lost": lost}


def _samples(ledger: Ledger) -> Summary:
    sent = ledger.samples
    count = {
        "sent": len(sent),
        "accepted": sum(place in ledger.accepted for place in sent),
        "quarantined": sum(place in ledger.quarantined for place in sent),
        "dead_lettered": sum(place in ledger.dead for place in sent),
    }
    outcomes = (ledger.accepted, ledger.quarantined, ledger.dead)
    lost = sum(not any(place in known for known in outcomes) for place in sent)
    return {**count, "lost": lost, "revoked": len(ledger.revoked & sent.keys())}


def successful(ledger: Ledger, predict: Predict) -> dict[Place, bool]:
    """Attacks that count: the original is classified right, and the attack is not.

    Both are judged by the checkpoint that scored the attack.
    """
    by_version: dict[int, list[Place]] = {}
    for place, sent in ledger.inputs.items():
        if sent.kind == "attack" and place in ledger.scores:
            by_version.setdefault(ledger.scores[place].version, []).append(place)
    found: dict[Place, bool] = {}
    for version, places in by_version.items():
        originals = np.stack([ledger.inputs[place].original for place in places])  # type: ignore[misc]
        before = predict(version, originals)
        for place, was in zip(places, before.tolist(), strict=True):
            label = ledger.inputs[place].label
            found[place] = was == label and ledger.scores[place].prediction != label
    return found


def _evasion(ledger: Ledger, predict: Predict) -> Summary:
    won = [place for place, good in successful(ledger, predict).items() if good]
    by_epsilon: dict[str, list[int]] = {}
    for place in won:
        counts = by_epsilon.setdefault(f"{ledger.inputs[place].epsilon:g}", [0, 0])
        counts[0] += ledger.scores[place].flag
        counts[1] += 1
    benign = [
        ledger.scores[place].flag
        for place, sent in ledger.inputs.items()
        if sent.kind == "honest" and place in ledger.scores
    ]
    honest = {s.client for s in ledger.inputs.values() if s.kind in {"honest", "drift"}}
    accused = {a.alert.subject.id for a in _alerts(ledger, "evasion")}
    return {
        "attack_inputs": len(won),
        "attack_flagged": sum(ledger.scores[place].flag for place in won),
        "by_epsilon": dict(sorted(by_epsilon.items())),
        "benign_inputs": len(benign),
        "benign_flagged": sum(benign),
        "honest_clients": len(honest),
        "honest_clients_accused": len(honest & accused),
    }


def _poisoning(ledger: Ledger) -> Summary:
    poison = [p for p, s in ledger.samples.items() if s.kind in {"quiet", "loud"}]
    # What comes after the verdict on its source is held, whatever is found in it.
    loud = [
        place
        for place, sample in ledger.samples.items()
        if sample.kind == "loud" and BY_VERDICT not in ledger.quarantined.get(place, ())
    ]
    clean = [p for p, s in ledger.samples.items() if s.kind == "honest"]
    return {
        "poison_samples": len(poison),
        "poison_quarantined_or_revoked": sum(
            place in ledger.quarantined or place in ledger.revoked for place in poison
        ),
        "loud_samples": len(loud),
        "loud_caught_by_sample": sum(place in ledger.quarantined for place in loud),
        "clean_samples": len(clean),
        "clean_quarantined": sum(place in ledger.quarantined for place in clean),
    }


def _drift(ledger: Ledger) -> Summary:
    started = min((s.number for s in ledger.inputs.values() if s.kind == "drift"), default=0)
    false_alarms, alarmed = 0, 0
    seen = set()
    for one in _alerts(ledger, "drift"):
        if one.alert.episode in seen:
            continue
        seen.add(one.alert.episode)
        crossed = _crossed(ledger, one)
        if not started or crossed < started:
            false_alarms += 1
        elif not alarmed:
            alarmed = crossed
    return {
        "started_at_input": started,
        "alarmed_at_input": alarmed,
        "false_alarms": false_alarms,
    }


def _crossed(ledger: Ledger, one: SeenAlert) -> int:
    """The number of the newest input that an alert is about."""
    places: list[Place] = [(t, p, o) for t, p, o, _ in one.alert.positions if t == INPUTS]
    return max((ledger.inputs[p].number for p in places if p in ledger.inputs), default=0)


def _rollback(ledger: Ledger) -> Summary:
    for incident in _by_time(ledger):
        for action in incident.actions:
            figures = action.figures
            done = action.state == "done" and figures.get("needed") is not False
            if action.action == "rollback" and done:
                return {
                    "from": str(figures["from"]), "to": str(figures["to"]),
                    "verified": bool(figures["verified"]), "seconds": figures["seconds"],
                }  # fmt: skip
    return {"from": "", "to": "", "verified": False, "seconds": 0}


def _incident(incident: Incident) -> Summary:
    return {
        "id": str(incident.id),
        "threat": incident.threats[0],
        "model": incident.model,
        "state": incident.state,
        "actions": [{"action": a.action, "outcome": a.state} for a in incident.actions],
    }


def _latency(ledger: Ledger) -> Summary:
    """From produced to score readable."""
    times = [
        1000 * (ledger.scores[place].seen - sent.at)
        for place, sent in ledger.inputs.items()
        if place in ledger.scores
    ]
    if not times:
        return {"p50": 0, "p95": 0, "p99": 0}
    found = np.percentile(times, [50, 95, 99]).round(1).tolist()
    return dict(zip(("p50", "p95", "p99"), found, strict=True))


def _to_first_alert(ledger: Ledger) -> float:
    """From the first attack input to the first alert about its client."""
    attacks = [s for s in ledger.inputs.values() if s.kind == "attack"]
    clients = {s.client for s in attacks}
    seen = [a.seen for a in _alerts(ledger, "evasion") if a.alert.subject.id in clients]
    return round(min(seen) - min(s.at for s in attacks), 2) if seen else 0.0


def _alerts(ledger: Ledger, name: str) -> list[SeenAlert]:
    """Alerts of a family, in the order in which they could be read."""
    found = [a for a in ledger.alerts.values() if family(a.alert.threat) == name]
    return sorted(found, key=lambda a: a.seen)


def _by_time(ledger: Ledger) -> list[Incident]:
    return sorted(ledger.incidents.values(), key=lambda i: i.first_seen)


__all__ = ["FAMILIES", "SAMPLES", "Predict", "Summary", "problems", "successful", "summarise"]
