"""The owner's view of one model: summaries in, row by row and in log order, alerts out.

What a row leads to depends on the rows before it and on the stream time of its summary, never on
how rows were cut into summaries. A row at or below the highest position applied changes nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnsec import wording
from nnsec.drift import WINDOW, Reference
from nnsec.episodes import Episode, Episodes, Report
from nnsec.evidence import Allowance, Bets, Crossing, Evidence, Levels
from nnsec.sealed import seal, unseal
from nnsec.settings import Budget
from nnsec.signals import Place, Shift
from nnsec.versions import Versions
from schemas.alert import Alert
from schemas.base import to_millis
from schemas.summary import Summary

CLIENTS, SOURCES, DRIFT, ERRORS = 0.5, 0.3, 0.15, 0.05
"""Shares of the budget; they sum to 1 over all that can accuse."""
SOURCE_MEMORY = 1 << 14
"""Samples come slower than inputs, so that fewer of them are remembered as repeats."""


class Watch:
    """Everything that is judged about one model.

    Parameters
    ----------
    model:
        Its name.
    budget:
        Falsely accused subjects a day, what traffic is expected, and how many clients are kept.
    """

    def __init__(self, model: str, budget: Budget) -> None:
        self.model = model
        self.budget = budget
        self.now = 0
        self.redelivered = 0
        self.concentrated = 0
        daily = budget.false_subjects_per_day
        inputs, samples = budget.expected_inputs_per_day, budget.expected_samples_per_day
        windows = max(1.0, inputs / WINDOW)
        self.allowances = {
            "inputs": Allowance(weight=CLIENTS * daily / inputs, daily=CLIENTS * daily),
            "samples": Allowance(weight=SOURCES * daily / samples, daily=SOURCES * daily),
            "windows": Allowance(weight=DRIFT * daily / windows, daily=DRIFT * daily),
            "windows_of_labels": Allowance(weight=ERRORS * daily / windows, daily=ERRORS * daily),
        }
        self.clients = Evidence(self.allowances["inputs"], capacity=budget.max_clients)
        self.sources = Evidence(
            self.allowances["samples"], capacity=budget.max_clients, memory=SOURCE_MEMORY
        )
        self._versions = Versions(
            inputs=self.allowances["windows"], labels=self.allowances["windows_of_labels"]
        )
        self.episodes = Episodes(model, self._report)
        self._applied: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._levels: dict[str, Levels] = {}
        self._bets: dict[str, Bets] = {}
        self._recent: deque[Place] = deque(maxlen=100)

    def apply(self, summary: Summary, reference: Reference) -> list[Alert]:
        """Take in one summary.

        Parameters
        ----------
        summary:
            Of this model.
        reference:
            Of the checkpoint that the summary names.

        Returns
        -------
        list[Alert]
            In the order in which they came to be.

        Raises
        ------
        SchemaError
            If its rows cannot be read; nothing was changed then.
        """
        rows = summary.unpack().tolist()
        log = str(summary.log)
        fresh = [row for row in rows if self._first(log, summary.topic, *row[:3])]
        if not fresh:
            return []
        self.now = max(self.now, to_millis(summary.time))
        lasting = frozenset({"drift"} if self.drifting else ())
        alerts = list(self.episodes.due(self.now, lasting=lasting))
        apply = {"input": self._input, "sample": self._sample, "label": self._label}[summary.kind]
        for row in fresh:
            where: Place = (log, summary.topic, *row[:3], self.now)
            alerts += apply(summary, reference, row, where)
        return alerts

    def _first(self, log: str, topic: str, partition: int, offset: int, row: int) -> bool:
        """Whether a row comes for the first time; it counts as applied from now on."""
        last = self._applied.get((log, topic, partition))
        if last is not None and (offset, row) <= last:
            self.redelivered += 1
            return False
        self._applied[log, topic, partition] = (offset, row)
        return True

    @property
    def drifting(self) -> bool:
        """Whether drift is open for a checkpoint that scores."""
        return self._versions.drifting

    @property
    def late_labels(self) -> int:
        """Labels whose checkpoint scores no more and is forgotten."""
        return self._versions.late

    def _input(
        self, summary: Summary, reference: Reference, row: tuple[Any, ...], where: Place
    ) -> list[Alert]:
        subject, prediction, confidence, _, _, level, tier, fingerprint = row[3:]
        client, version = summary.subjects[subject], summary.model_version
        drift = self._versions.drift(version, reference)
        self._versions.scored(version, self.now)
        bets = drift.bets(min(tier, len(reference.tiers) - 1), version)
        self._levels[f"input/{version}"] = reference.tiers[0]
        counted, crossing = self.clients.update(client, level, fingerprint, bets, now=self.now)
        if not counted:
            return []
        episode = self.episodes.find("evasion", client)
        self._take(episode, level, -1, where, crossing)
        alerts: list[Alert] = []
        if crossing and episode is None:
            alerts.append(self._accuse("evasion", client, version, crossing, where))
        self._recent.append(where)
        shifts = drift.add_input(client, level, confidence, prediction, where)
        return alerts + self._shifted(shifts, version, where)

    def _sample(
        self, summary: Summary, reference: Reference, row: tuple[Any, ...], where: Place
    ) -> list[Alert]:
        subject, _, _, _, _, level, _, reasons, fingerprint = row[3:]
        screen = reference.screen
        if screen is None:
            return []
        source, version = summary.subjects[subject], summary.model_version
        named = [name for bit, name in enumerate(summary.reasons) if reasons >> bit & 1]
        tag = wording.tag(named)
        bets = self._bets.get(version)
        if bets is None:
            bets = self._bets[version] = Bets.against(screen, rates=screen.rates, version=version)
        self._levels[f"sample/{version}"] = screen
        counted, crossing = self.sources.update(
            source, level, fingerprint, bets, now=self.now, tag=tag
        )
        if not counted:
            return []
        episode = self.episodes.find("poisoning", source)
        self._take(episode, level, tag, where, crossing)
        if crossing and episode is None:
            return [self._accuse("poisoning", source, version, crossing, where)]
        return []

    def _label(
        self, summary: Summary, reference: Reference, row: tuple[Any, ...], where: Place
    ) -> list[Alert]:
        subject, prediction, label = row[3:]
        drift = self._versions.labelled(summary.model_version, reference)
        if drift is None:
            return []
        client = summary.subjects[subject]
        shifts = drift.add_label(client, prediction != label, where)
        return self._shifted(shifts, summary.model_version, where)

    def _take(
        self, episode: Episode | None, level: int, tag: int, where: Place,
        crossing: Crossing | None,
    ) -> None:  # fmt: skip
        """Add a row to the episode of its subject, if one goes on."""
        if episode is None:
            return
        episode.inputs += 1
        for index in range(len(episode.passed) - level, len(episode.passed)):
            episode.passed[index] += 1
        if 0 <= tag < len(episode.tags):
            episode.tags[tag] += 1
        if level > len(episode.passed) // 2:
            episode.place(where)
            episode.dirty = True
        if crossing:
            episode.crossings += 1
            episode.crossed = self.now
            episode.evidence = max(episode.evidence, crossing.evidence)
            episode.dirty = True
            episode.void = episode.void or self._void(episode.rule)

    def _accuse(
        self, rule: Any, subject: str, version: str, crossing: Crossing, where: Place
    ) -> Alert:
        kind: Any = "client" if rule == "evasion" else "source"
        episode = self.episodes.open(rule, kind, subject, version, crossing.evidence, where)
        episode.inputs = crossing.inputs
        episode.passed, episode.tags = list(crossing.passed), list(crossing.tags)
        episode.void = self._void(rule)
        episode.place(where)
        return self.episodes.send(episode, self.now)

    def _void(self, rule: str) -> bool:
        """Whether drift takes the guarantee from an accusation: it is of inputs, not of samples."""
        return rule == "evasion" and self.drifting

    def _shifted(self, shifts: Sequence[Shift], version: str, where: Place) -> list[Alert]:
        spread = [shift for shift in shifts if shift.verdict == "spread"]
        self.concentrated += len(shifts) - len(spread)
        if not spread:
            return []
        episode = self.episodes.find("drift", self.model)
        fresh = episode is None
        if episode is None:
            if not self._versions.replaced(version):  # late labels say nothing of what clients do
                self.clients.clear()
            episode = self.episodes.open("drift", "model", self.model, version, 0.0, where)
        else:
            episode.crossings += 1
        episode.crossed = self.now
        episode.dirty = True
        episode.evidence = max(episode.evidence, *(shift.evidence for shift in spread))
        episode.facts, episode.text = wording.drift_figures(spread)
        episode.positions.extend(place[1:5] for place in self._recent)
        return [self.episodes.send(episode, self.now)] if fresh else []

    def _report(self, episode: Episode) -> Report:
        if episode.rule == "drift":
            return wording.drift_report(episode)
        kind = "input" if episode.rule == "evasion" else "sample"
        levels = self._levels[f"{kind}/{episode.version}"]
        return wording.accusation(episode, levels, self.budget.false_subjects_per_day)

    def snapshot(self) -> bytes:
        """All of the state behind its SHA-256; no pickle."""
        state = {
            "now": self.now,
            "counts": [self.redelivered, self.concentrated],
            **self._versions.state(),
            "applied": [[*key, *value] for key, value in self._applied.items()],
            "recent": list(self._recent),
            "episodes": self.episodes.state(),
            "levels": {
                name: [level.n, level.levels, level.rates] for name, level in self._levels.items()
            },
        }
        parts = {f"drift{i}": raw for i, raw in enumerate(self._versions.snapshots())}
        parts |= {"clients": self.clients.snapshot(), "sources": self.sources.snapshot()}
        parts["state"] = json.dumps(state, separators=(",", ":")).encode()
        return seal(**{name: np.frombuffer(raw, np.uint8) for name, raw in parts.items()})

    def restore(self, snapshot: bytes) -> None:
        """Take up a snapshot of the same model.

        Raises
        ------
        DigestMismatch
            If its bytes are not what was written; nothing was changed then.
        """
        parts = {name: array.tobytes() for name, array in unseal(snapshot).items()}
        state = json.loads(parts["state"])
        self.now = state["now"]
        self.redelivered, self.concentrated = state["counts"]
        self.clients.restore(parts["clients"])
        self.sources.restore(parts["sources"])
        self._versions.restore(state, [parts[f"drift{i}"] for i in range(len(state["drifts"]))])
        self._bets.clear()
        self._applied = {(r[0], r[1], r[2]): (r[3], r[4]) for r in state["applied"]}
        self._recent = deque((tuple(place) for place in state["recent"]), maxlen=100)
        self._levels = {
            name: Levels(n, tuple(levels), tuple(rates))
            for name, (n, levels, rates) in state["levels"].items()
        }
        self.episodes.restore(state["episodes"])
