"""What to learn next, where lessons made a model worse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from prometheus_client import Counter

from nnsec.checkpoints import Parent
from nnsec.checkpoints.provenance import Position
from workers.curriculum import namable
from workers.words import counted

REFUSED = Counter("nnsec_refused_lessons", "Lessons that made the model worse", ["model"])

Senders = Callable[[Iterable[Position]], str]
"""As `workers.curriculum.Curriculum.senders`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Refused:
    """The lessons refused for one checkpoint to train on from, and why the last one was."""

    parent: Parent
    lessons: tuple[frozenset[Position], ...] = ()
    text: str = ""


class Refusals:
    """Lessons that made a model worse, so as not to try them again as they are.

    One stands until a sample of it may not be learned any more, as one that was revoked: what is
    left of it is another lesson.

    Parameters
    ----------
    n:
        Samples of a lesson at least, and in how many another one differs.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._refused: dict[str, _Refused] = {}
        self._scant: set[str] = set()
        self.count = 0
        """Lessons refused so far."""

    def text(self, model: str) -> str:
        """Why the last lesson of a model was refused; empty if it was not, or does not stand."""
        return self._refused[model].text if model in self._refused else ""

    def note(
        self, model: str, reason: str, parent: Parent, lesson: Sequence[Position], senders: Senders
    ) -> None:
        """Remember a lesson, say so as an error, and count it."""
        text = (
            f"model {model}: {reason}; it is not signed, and its {counted(len(lesson), 'sample')} "
            f"are set aside; most are of {senders(lesson)}"
        )
        logger.error("%s", text)
        REFUSED.labels(model).inc()
        self.count += 1
        own, stands = frozenset(lesson), self._refused.get(model, _Refused(parent))
        others = tuple(one for one in stands.lessons if not one <= own)
        self._refused[model] = _Refused(parent, (*others, own), text)

    def passed(self, model: str, made: Parent) -> None:
        """A lesson passed, and this is its checkpoint; what was refused stays set aside."""
        if model in self._refused:
            self._refused[model] = replace(self._refused[model], parent=made, text="")

    def choose(
        self, model: str, parent: Parent, fresh: Sequence[Position], senders: Senders
    ) -> list[Position]:
        """Pick a lesson that one manifest can name; for a thread.

        What was not refused yet comes first, by itself: else those who spoiled one lesson would
        spoil all. If that is refused too, all together are tried.

        Parameters
        ----------
        fresh:
            All that may be learned for this parent, in order.

        Returns
        -------
        list
            Of at least n positions; empty if there is no lesson now.
        """
        lessons = self._standing(model, parent, fresh)
        if len(fresh) < self._n:
            return []
        aside = frozenset[Position]().union(*lessons)
        further = namable([position for position in fresh if position not in aside])
        if len(further) >= self._n:
            self._scant.discard(model)
            if aside:
                logger.info("model %s: %s set aside", model, counted(len(aside), "sample"))
            return further
        whole = namable(fresh) if aside else further
        if len(whole) < self._n:
            self._say_scant(model, senders(fresh))
            return []
        self._scant.discard(model)
        differs = all(len(one.symmetric_difference(whole)) >= self._n for one in lessons)
        return whole if differs else []

    def _standing(
        self, model: str, parent: Parent, fresh: Sequence[Position]
    ) -> tuple[frozenset[Position], ...]:
        """The lessons of this parent that could be tried as they were; others are forgotten."""
        stands = self._refused.pop(model, None)
        if stands is None or stands.parent != parent:
            return ()
        there = frozenset(fresh)
        lessons = tuple(one for one in stands.lessons if one <= there)
        if lessons:
            self._refused[model] = replace(stands, lessons=lessons)
        return lessons

    def _say_scant(self, model: str, senders: str) -> None:
        """Say once that there is enough to learn from, but not enough that a manifest can name."""
        if model not in self._scant:
            logger.warning(
                "model %s: nothing is trained: of the records of its new samples so few rows were "
                "accepted that one manifest cannot name %d of them; most samples are of %s",
                model, self._n, senders,
            )  # fmt: skip
            self._scant.add(model)
