"""The live picture of the demo: rates, latency, alerts, incidents, remediation, progress."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from schemas.incident import Incident
from workers.demo.ledger import Ledger

STATES = {
    "open": "yellow", "awaiting_approval": "magenta", "containing": "cyan", "contained": "green",
    "resolved": "green", "failed": "red", "dismissed": "dim",
}  # fmt: skip
SPARKS = "▁▂▃▄▅▆▇█"
WINDOW = 5.0
"""Seconds that rate and latency are taken over."""
SHOWN = 6


@dataclass(slots=True)
class Live:
    """Draws a ledger; `render` is called a few times a second.

    Parameters
    ----------
    steps:
        How many steps the demo has.
    said:
        Called with every line that is new, for where nothing can be drawn.
    """

    ledger: Ledger
    steps: int
    said: Callable[[str], object] = str
    detail: str = ""
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=SHOWN))
    _epochs: dict[str, int] = field(default_factory=dict)
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    _bar: Progress = field(
        default_factory=lambda: Progress(
            TextColumn("{task.description}"), BarColumn(None), TimeElapsedColumn(), expand=True
        )
    )
    _task: TaskID | None = None

    def begin(self, step: str, note: str = "") -> None:
        """Go on to the next step."""
        if self._task is None:
            self._task = self._bar.add_task(step, total=self.steps)
        else:
            self._bar.advance(self._task)
        self._bar.update(self._task, description=step)
        self.detail = ""
        self.said(step)
        if note:
            self.note(note)

    def note(self, text: str) -> None:
        """Say something that happened."""
        self.notes.append(text)
        self.said(f"  {text}")

    def end(self) -> None:
        """Fill the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=self.steps, description="done")

    def render(self, now: float) -> RenderableType:
        """The picture as of now, in the seconds of the demo's clock."""
        self._swaps()
        top = Table.grid(expand=True)
        top.add_column(ratio=1)
        top.add_column(ratio=1)
        top.add_row(self._traffic(now), self._alerts())
        return Group(self._bar, top, self._incidents(), self._notes())

    def _swaps(self) -> None:
        """Say which checkpoint serves from now on, and why."""
        for name, model in self.ledger.models.items():
            if self._epochs.get(name, model.epoch) != model.epoch:
                _, _, reason = model.reason.rpartition(": ")
                self.note(f"checkpoint {model.version} serves: {reason}")
            self._epochs[name] = model.epoch

    def _traffic(self, now: float) -> Panel:
        ledger = self.ledger
        recent = [(p, s) for p, s in ledger.scores.items() if now - s.seen < WINDOW]
        times = [1000 * (s.seen - ledger.inputs[p].at) for p, s in recent if p in ledger.inputs]
        rate = len(recent) / WINDOW
        self._rates.append(rate)
        middle, high = np.percentile(times, [50, 95]).tolist() if times else (0.0, 0.0)
        table = Table.grid(padding=(0, 2))
        table.add_row("inputs", f"{len(ledger.inputs)} sent, {len(ledger.scores)} scored")
        dead = ledger.dead_of(ledger.inputs)
        table.add_row("", f"{ledger.waiting_inputs} on their way, {dead} dead letters")
        table.add_row("samples", f"{len(ledger.samples)} sent, {len(ledger.accepted)} accepted")
        table.add_row("", f"{len(ledger.quarantined)} quarantined, {len(ledger.revoked)} revoked")
        table.add_row("", f"{ledger.dead_of(ledger.samples)} dead letters")
        table.add_row("rate", f"{rate:6.1f}/s {_sparks(self._rates)}")
        table.add_row("latency", f"{middle:.0f} ms half of them, {high:.0f} ms 95 %")
        for name, model in ledger.models.items():
            table.add_row("serves", f"{name} checkpoint {model.version} (epoch {model.epoch})")
        return Panel(table, title="traffic")

    def _alerts(self) -> Panel:
        threats = Counter(one.alert.threat for one in self.ledger.alerts.values())
        table = Table.grid(padding=(0, 2))
        for threat, number in threats.most_common():
            table.add_row(threat, str(number))
        for one in sorted(self.ledger.alerts.values(), key=lambda a: a.seen)[-3:]:
            subject = one.alert.subject
            table.add_row(
                f"[{_colour(one.alert.severity)}]{one.alert.severity}",
                escape(f"{one.alert.threat} by {subject.kind} {subject.id}"),
            )
        return Panel(table if threats else "none yet", title="alerts")

    def _incidents(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        for one in sorted(self.ledger.incidents.values(), key=lambda i: i.first_seen):
            table.add_row(
                one.family, f"[{STATES[one.state]}]{one.state}", one.severity, escape(steps(one))
            )
        return Panel(table if self.ledger.incidents else "none yet", title="incidents")

    def _notes(self) -> Panel:
        lines = [*self.notes, self.detail] if self.detail else self.notes
        return Panel("\n".join(map(escape, lines)) or " ", title="what happens")


def steps(incident: Incident) -> str:
    """The remediation steps of an incident, or its newest reason."""
    if incident.actions:
        return ", ".join(f"{a.action} {a.subject.id}: {a.state}" for a in incident.actions)
    return incident.history[-1].reason if incident.history else ""


def _sparks(values: deque[float]) -> str:
    most = max(values, default=0.0) or 1.0
    return "".join(SPARKS[min(7, int(8 * value / most))] for value in values)


def _colour(severity: str) -> str:
    return {"critical": "red", "high": "red", "medium": "yellow"}.get(severity, "dim")
