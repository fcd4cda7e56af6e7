"""The subjects inside an incident: who is involved, since when, and with how much evidence."""

from __future__ import annotations

from schemas.alert import Alert
from schemas.incident import IncidentSubject
from schemas.threats import Threat

MAX_SUBJECTS = 500
"""Subjects kept in a record; the rest is counted, so that a record fits into a message."""
MAX_EPISODES = 4
"""Episodes remembered per subject; redelivery never reaches further back."""


def merge(
    known: tuple[IncidentSubject, ...], alert: Alert, left_out: float
) -> tuple[tuple[IncidentSubject, ...], dict[str, float]]:
    """Add an alert to its subject, or a new subject in place of the weakest when there are many.

    Returns
    -------
    The subjects, and the totals over them (``alerts``, ``subjects``, ``strongest`` evidence,
    ``subjects_left_out``).
    """
    mine = next((s for s in known if s.subject == alert.subject), None)
    subject = joined(mine, alert)
    if mine is not None:
        merged = tuple(subject if s is mine else s for s in known)
    else:
        if len(known) >= MAX_SUBJECTS:
            weakest = min(known, key=lambda s: s.evidence)
            known = tuple(s for s in known if s is not weakest)
            left_out += 1
        merged = (*known, subject)
    return merged, totals(merged, left_out)


def totals(involved: tuple[IncidentSubject, ...], left_out: float) -> dict[str, float]:
    """What an incident's ``evidence`` says of its subjects, of which there is one or more."""
    return {
        "alerts": float(sum(s.alerts for s in involved)),
        "subjects": len(involved) + left_out,
        "strongest": max(s.evidence for s in involved),
        "subjects_left_out": left_out,
    }


def heard(subject: IncidentSubject, alert: Alert) -> bool:
    """Whether this message of this episode was counted already."""
    known = dict(zip(subject.episodes, subject.seqs, strict=False))
    return alert.seq <= known.get(alert.episode, -1)


def joined(known: IncidentSubject | None, alert: Alert) -> IncidentSubject:
    """The subject with one more alert; a gap in ``seq`` counts the alerts that were missed."""
    # Totals of an episode may come long after it opened: only its first alert says when.
    first = alert.time if alert.seq == 0 else None
    if known is None:
        return IncidentSubject(
            subject=alert.subject,
            threats=(alert.threat,),
            alerts=alert.seq + 1,
            first_seen=alert.time,
            last_seen=alert.time,
            evidence=alert.evidence,
            counts=alert.counts,
            episodes=(alert.episode,),
            seqs=(alert.seq,),
            opened=first,
        )
    episodes = dict(zip(known.episodes, known.seqs, strict=False))
    before = episodes.pop(alert.episode, -1)
    newest = [*episodes.items(), (alert.episode, alert.seq)][-MAX_EPISODES:]
    return known.model_copy(
        update={
            "threats": with_threat(known.threats, alert.threat),
            "alerts": known.alerts + alert.seq - before,
            "first_seen": min(known.first_seen, alert.time),
            "last_seen": max(known.last_seen, alert.time),
            "evidence": max(known.evidence, alert.evidence),
            "counts": alert.counts,
            "episodes": tuple(episode for episode, _ in newest),
            "seqs": tuple(seq for _, seq in newest),
            "opened": max((t for t in (known.opened, first) if t is not None), default=None),
        }
    )


def with_threat(values: tuple[Threat, ...], value: Threat) -> tuple[Threat, ...]:
    """The threats with one more, each once."""
    return values if value in values else (*values, value)
