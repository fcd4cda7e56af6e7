"""What the demo sent and what became of it, by position; ids are never trusted to count."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from numpy.typing import NDArray

from nnsec.adapters.records import Record
from nnsec.trust import statements
from nnsec.trust.keys import PublicKey
from schemas.alert import Alert
from schemas.dead_letter import decode_dead_letter
from schemas.incident import Incident
from schemas.model_statement import ModelStatement
from schemas.outcome import decode_outcome
from schemas.revocation import Revocation
from schemas.score import decode_score
from schemas.source import Source

INPUTS, SAMPLES = "inference.inputs", "training.samples"
TOPICS = (
    "scores", "training.accepted", "training.quarantine", "training.revocations", "dead-letters",
    "alerts", "incidents", "sources", "models",
)  # fmt: skip
BY_VERDICT = "source_quarantined"
"""A reason of all samples that are held back for their source, beside those of their own."""

Place = tuple[str, int, int]
"""(topic, partition, offset) of a record that was sent; the demo sends one row a record."""


@dataclass(frozen=True, slots=True, eq=False)
class SentInput:
    r"""One record of ``inference.inputs``.

    Parameters
    ----------
    number:
        How many inputs were sent before it.
    label:
        Its true class; −1 for a malformed one.
    at:
        When it was sent, in the seconds of the demo's clock.
    epsilon:
        Of an attack, as a share of the range; else 0.
    original:
        (\*shape) what an attack began with.
    """

    kind: Literal["honest", "attack", "drift", "malformed"]
    number: int
    client: str
    label: int
    at: float
    epsilon: float = 0.0
    original: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class SentSample:
    """One record of ``training.samples``; ``quiet`` and ``loud`` are poison."""

    kind: Literal["honest", "quiet", "loud", "malformed"]
    source: str
    at: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What the monitor said of one input, and when that could first be read."""

    flag: bool
    prediction: int
    version: int
    seen: float


@dataclass(frozen=True, slots=True)
class SeenAlert:
    """An alert, and when it could first be read."""

    alert: Alert
    seen: float


@dataclass(slots=True)
class Ledger:
    """All that was sent and all that was read.

    Parameters
    ----------
    release_keys:
        Keys whose model statements count.
    """

    release_keys: tuple[PublicKey, ...] = ()
    inputs: dict[Place, SentInput] = field(default_factory=dict)
    samples: dict[Place, SentSample] = field(default_factory=dict)
    scores: dict[Place, Scored] = field(default_factory=dict)
    dead: dict[Place, str] = field(default_factory=dict)
    accepted: dict[Place, float] = field(default_factory=dict)
    quarantined: dict[Place, tuple[str, ...]] = field(default_factory=dict)
    revoked: set[Place] = field(default_factory=set)
    sources: dict[str, Source] = field(default_factory=dict)
    alerts: dict[UUID, SeenAlert] = field(default_factory=dict)
    incidents: dict[UUID, Incident] = field(default_factory=dict)
    models: dict[str, ModelStatement] = field(default_factory=dict)
    raw: int = 0
    """Scores read, replays included."""

    def read(self, record: Record, now: float) -> None:
        """Take in one record of the topics that the monitor writes.

        Raises
        ------
        NNSecError
            If it is not what its topic promises: then the monitor is wrong.
        """
        if record.topic == "scores":
            self._score(record, now)
        elif record.topic in {"training.accepted", "training.quarantine"}:
            self._outcome(record, now)
        elif record.topic == "dead-letters":
            letter = decode_dead_letter(record.key, record.value, record.headers)
            place = (letter.topic, letter.partition, letter.offset)
            self.dead.setdefault(place, f"{letter.error_class} {letter.field}")
        elif record.topic == "training.revocations":
            self._revocation(Revocation.decode(record.value))
        elif record.topic == "alerts":
            alert = Alert.decode(record.value)
            self.alerts.setdefault(alert.id, SeenAlert(alert, now))
        elif record.topic == "incidents":
            self._incident(Incident.decode(record.value))
        elif record.topic == "sources":
            source = Source.decode(record.value)
            self.sources[source.source] = source
        else:
            self._statement(record)

    def _score(self, record: Record, now: float) -> None:
        score = decode_score(record.value, record.headers)
        self.raw += 1
        place = (score.topic, score.partition, score.offset)
        if place not in self.scores:
            self.scores[place] = Scored(
                score.verdict[0] != "allow", int(score.prediction[0]), score.version, now
            )

    def _outcome(self, record: Record, now: float) -> None:
        outcome = decode_outcome(record.value, record.headers)
        place = (SAMPLES, outcome.partition, outcome.offset)
        if outcome.verdict == "accepted":
            self.accepted.setdefault(place, now)
        else:
            self.quarantined.setdefault(place, outcome.reasons[0])

    def _revocation(self, revocation: Revocation) -> None:
        places = {(SAMPLES, partition, offset) for partition, offset, _ in revocation.positions}
        if revocation.withdrawn:
            self.revoked -= places
        else:
            self.revoked |= places

    def _incident(self, incident: Incident) -> None:
        known = self.incidents.get(incident.id)
        if known is None or incident.version > known.version:
            self.incidents[incident.id] = incident

    def _statement(self, record: Record) -> None:
        statement = statements.read_statement(record, self.release_keys)
        known = self.models.get(statement.model)
        newer = known is None or statement.epoch > known.epoch
        if statement.phase == "activate" and newer:
            self.models[statement.model] = statement

    # --- what is asked of it while the demo runs ---

    @property
    def waiting_inputs(self) -> int:
        """Inputs without an outcome yet."""
        return sum(1 for p in self.inputs if p not in self.scores and p not in self.dead)

    @property
    def waiting_samples(self) -> int:
        """Samples without an outcome yet."""
        return sum(
            1
            for p in self.samples
            if p not in self.accepted and p not in self.quarantined and p not in self.dead
        )

    def dead_of(self, sent: Container[Place]) -> int:
        """Dead letters about what was sent."""
        return sum(place in sent for place in self.dead)

    def of_family(self, family: str) -> list[Incident]:
        """Incidents of one family."""
        return [one for one in self.incidents.values() if one.family == family]

    def active_version(self, model: str) -> int:
        """The checkpoint that the newest statement activates; 0 for none."""
        found = self.models.get(model)
        return found.version if found else 0

    def epoch(self, model: str) -> int:
        """The epoch of that statement; 0 for none."""
        found = self.models.get(model)
        return found.epoch if found else 0
