"""Who is alive, what he holds, and what he serves: a fold of ``models.status``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from schemas.model_status import ModelStatus

SILENT = 15.0
"""Seconds without a report after which a worker is gone."""

Target = tuple[int, int, str]
"""(epoch, version, digest) that is to serve."""


@dataclass(frozen=True, slots=True)
class _Heard:
    status: ModelStatus
    at: float


class Board:
    """The newest report of each worker.

    Times are seconds of a clock that never goes back (``time.monotonic``).
    """

    def __init__(self) -> None:
        self._workers: dict[UUID, _Heard] = {}

    def learn_one(self, status: ModelStatus, at: float) -> None:
        """Fold one report, heard at ``at``."""
        if status.leaving:
            self._workers.pop(status.worker, None)
        else:
            self._workers[status.worker] = _Heard(status, at)

    def live(self, now: float) -> tuple[ModelStatus, ...]:
        """Reports of the workers that are not gone."""
        return tuple(h.status for h in self._workers.values() if now - h.at < SILENT)

    def unanswered(self, model: str, epoch: int, topic: str, now: float) -> tuple[UUID, ...]:
        """Live workers that hold partitions of a topic and said nothing about an epoch yet."""
        return tuple(
            status.worker
            for status in self.live(now)
            if status.partitions.get(topic) and not _answers(status, model, epoch)
        )

    def refusals(self, model: str, epoch: int, topic: str, now: float) -> tuple[str, ...]:
        """Why workers refused an epoch, if all that hold the topic did; empty otherwise."""
        holders = [s for s in self.live(now) if s.partitions.get(topic)]
        reasons = [
            served.reason or "no reason given"
            for status in holders
            for served in status.models
            if (served.model, served.epoch, served.state) == (model, epoch, "refused")
        ]
        return tuple(reasons) if holders and len(reasons) >= len(holders) else ()

    def unswapped(
        self, model: str, target: Target, topic: str, partitions: Iterable[int], now: float
    ) -> tuple[int, ...]:
        """Partitions of a topic that no live worker holds with this very checkpoint active."""
        served = {
            partition
            for status in self.live(now)
            if any(
                (one.model, one.state) == (model, "active")
                and (one.epoch, one.version, one.digest) == target
                for one in status.models
            )
            for partition in status.partitions.get(topic, ())
        }
        return tuple(sorted(set(partitions) - served))

    def uninformed(
        self, version: int, topic: str, partitions: Iterable[int], now: float
    ) -> tuple[int, ...]:
        """Partitions that no live worker with that version of the source statements holds."""
        served = {
            partition
            for status in self.live(now)
            if status.sources_version >= version
            for partition in status.partitions.get(topic, ())
        }
        return tuple(sorted(set(partitions) - served))


def _answers(status: ModelStatus, model: str, epoch: int) -> bool:
    return any(one.model == model and one.epoch >= epoch for one in status.models)
