"""Episodes: what an alert is a message of, from the row that crossed a bound to a quiet minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid5

from nnsec.signals import Place
from schemas.alert import Alert, Subject
from schemas.base import Severity, from_millis
from schemas.threats import Threat, atlas

RESEND_MS = 10_000
QUIET_MS = 60_000
POSITIONS = 100
MOST = 1000
"""Episodes that go on at once; when full, the one that is longest without a crossing ends."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an alert says of an episode."""

    threat: Threat
    severity: Severity
    counts: Mapping[str, float]
    explanation: str


@dataclass(slots=True)
class Episode:
    """One rule and one subject, with totals since the stretch that led to the crossing.

    Times are stream time in ms; ``passed`` counts rows by level, ascending levels.
    """

    id: UUID
    rule: Literal["evasion", "poisoning", "drift"]
    kind: Literal["client", "source", "model"]
    subject: str
    version: str
    opened: int
    crossed: int
    sent: int
    evidence: float
    inputs: int = 0
    passed: list[int] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    crossings: int = 1
    seq: int = 0
    void: bool = False
    dirty: bool = False
    facts: dict[str, float] = field(default_factory=dict)
    text: str = ""
    positions: deque[tuple[str, int, int, int]] = field(
        default_factory=lambda: deque(maxlen=POSITIONS)
    )

    def place(self, where: Place) -> None:
        """Remember a row as one that the episode is about."""
        self.positions.append(where[1:5])


class Episodes:
    """The episodes of one model that go on.

    Parameters
    ----------
    model:
        Whose they are.
    report:
        Puts an episode into words and figures.
    """

    def __init__(self, model: str, report: Callable[[Episode], Report]) -> None:
        self._model = model
        self._report = report
        self._open: dict[tuple[str, str], Episode] = {}

    def __len__(self) -> int:
        return len(self._open)

    def find(self, rule: str, subject: str) -> Episode | None:
        """The episode of a rule and a subject, if one goes on."""
        return self._open.get((rule, subject))

    def open(
        self,
        rule: Literal["evasion", "poisoning", "drift"],
        kind: Literal["client", "source", "model"],
        subject: str,
        version: str,
        evidence: float,
        where: Place,
    ) -> Episode:
        """Begin an episode at the row that crossed the bound; `send` gives its first alert."""
        log, topic, partition, offset, row, now = where
        name = f"{rule}/{subject}/{topic}/{partition}/{offset}/{row}"
        if len(self._open) >= MOST:
            del self._open[min(self._open, key=lambda key: self._open[key].crossed)]
        episode = Episode(
            uuid5(UUID(log), name), rule, kind, subject, version, now, now, now, evidence
        )
        self._open[rule, subject] = episode
        return episode

    def send(self, episode: Episode, now: int) -> Alert:
        """The next alert of an episode."""
        report = self._report(episode)
        alert = Alert(
            id=uuid5(episode.id, str(episode.seq)), episode=episode.id, seq=episode.seq,
            time=from_millis(now), model=self._model, model_version=episode.version,
            threat=report.threat, atlas=atlas(report.threat), severity=report.severity,
            evidence=episode.evidence, subject=Subject(kind=episode.kind, id=episode.subject),
            positions=tuple(episode.positions), counts=dict(report.counts),
            explanation=report.explanation,
        )  # fmt: skip
        episode.seq += 1
        episode.sent = now
        episode.dirty = False
        return alert

    def due(self, now: int, *, lasting: frozenset[str] = frozenset()) -> Iterator[Alert]:
        """Alerts whose totals changed and whose time has come; ends what was quiet.

        Parameters
        ----------
        now:
            Stream time, ms.
        lasting:
            Rules whose episodes go on however long they are quiet.
        """
        for key, episode in list(self._open.items()):
            over = now - episode.crossed >= QUIET_MS and episode.rule not in lasting
            if episode.dirty and (over or now - episode.sent >= RESEND_MS):
                yield self.send(episode, now)
            if over:
                del self._open[key]

    def state(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        names = Episode.__slots__
        found = []
        for episode in self._open.values():
            values = {name: getattr(episode, name) for name in names}
            found.append({**values, "id": str(episode.id), "positions": list(episode.positions)})
        return found

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take up what `state` gave."""
        self._open = {}
        for values in state:
            positions = deque((tuple(place) for place in values["positions"]), maxlen=POSITIONS)
            episode = Episode(**{**values, "id": UUID(values["id"]), "positions": positions})
            self._open[episode.rule, episode.subject] = episode
