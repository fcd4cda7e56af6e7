"""The subjects inside an incident: who is involved, since when, and with how much evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from schemas.alert import Alert, Subject
from schemas.incident import Incident, IncidentSubject, Unlisted
from schemas.threats import Threat

MAX_SUBJECTS = 500
"""Subjects kept in a record; the rest is counted, so that a record fits into a message."""
MAX_EPISODES = 4
"""Episodes remembered per subject; redelivery never reaches further back."""
MAX_UNLISTED = 1000
"""Subjects remembered by a digest beside those that are listed."""
UNLISTED_BYTES = 50
"""The most that one of them takes in the record, with a ``seq`` of ten figures."""
_DIGITS = 12


class Merged(NamedTuple):
    """The subjects with one more alert, those without room, and the totals over all of them."""

    listed: tuple[IncidentSubject, ...]
    unlisted: dict[str, Unlisted]
    totals: dict[str, float]


def merge(
    known: tuple[IncidentSubject, ...],
    alert: Alert,
    unlisted: Mapping[str, Unlisted],
    left_out: float,
    settled: AbstractSet[Subject],
) -> Merged:
    """Add an alert to its subject, or a new subject if there is room.

    When there is none, the weakest of those that are ``settled`` makes room, and without any the
    new one is not listed. So nobody is lost before something was done about him, however many come
    with more evidence; who is not listed has another chance with each alert.

    Returns
    -------
    The subjects, and the totals over them (``alerts``, ``subjects``, ``strongest`` evidence,
    ``subjects_left_out``).
    """
    mine = next((s for s in known if s.subject == alert.subject), None)
    if mine is not None:
        subject = joined(mine, alert)
        merged = tuple(subject if s is mine else s for s in known)
        return Merged(merged, dict(unlisted), totals(merged, left_out))
    others = dict(unlisted)
    before = others.pop(digest(alert.subject), None)
    left_out -= before is not None
    giving = [s for s in known if s.subject in settled]
    if before is not None and before[2] and before[0] == _short(alert.episode):
        # The last totals of what was answered: they take nobody's place.
        others[digest(alert.subject)] = before[0], alert.seq, True
        left_out += 1
    elif len(known) < MAX_SUBJECTS:
        known = (*known, joined(None, alert))
    elif giving:
        weakest = min(giving, key=lambda s: s.evidence)
        others |= remembered((weakest,), settled)
        known = (*(s for s in known if s is not weakest), joined(None, alert))
        left_out += 1
    else:
        others[digest(alert.subject)] = _short(alert.episode), alert.seq, False
        left_out += 1
    return Merged(known, newest(others, MAX_UNLISTED), totals(known, left_out))


def remembered(
    gone: Iterable[IncidentSubject], settled: AbstractSet[Subject]
) -> dict[str, Unlisted]:
    """What is kept of subjects that are not listed any more."""
    return {
        digest(s.subject): (
            _short(s.episodes[-1]) if s.episodes else "",
            s.seqs[-1] if s.seqs else -1,
            s.subject in settled,
        )
        for s in gone
    }


def newest(unlisted: dict[str, Unlisted], most: int) -> dict[str, Unlisted]:
    """The last so many of them."""
    return dict(list(unlisted.items())[max(len(unlisted) - most, 0) :])


def digest(subject: Subject) -> str:
    """By what a subject is known that is not listed."""
    return blake2b(f"{subject.kind}/{subject.id}".encode(), digest_size=_DIGITS // 2).hexdigest()


def _short(episode: UUID) -> str:
    return episode.hex[:_DIGITS]


def knows(incident: Incident, alert: Alert) -> bool:
    """Whether an alert's episode was met, also of a subject that is not listed."""
    other = incident.unlisted.get(digest(alert.subject))
    return (other is not None and other[0] == _short(alert.episode)) or any(
        alert.episode in item.episodes for item in incident.subjects
    )


def heard(incident: Incident, alert: Alert) -> bool:
    """Whether this message of this episode was counted already."""
    other = incident.unlisted.get(digest(alert.subject))
    if other is not None and other[0] == _short(alert.episode):
        return alert.seq <= other[1]
    return any(
        alert.seq <= dict(zip(item.episodes, item.seqs, strict=False)).get(alert.episode, -1)
        for item in incident.subjects
        if item.subject == alert.subject
    )


def totals(involved: tuple[IncidentSubject, ...], left_out: float) -> dict[str, float]:
    """What an incident's ``evidence`` says of its subjects, of which there is one or more."""
    return {
        "alerts": float(sum(s.alerts for s in involved)),
        "subjects": len(involved) + left_out,
        "strongest": max(s.evidence for s in involved),
        "subjects_left_out": left_out,
    }


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
