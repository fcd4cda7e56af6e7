"""The one checker of histories: pure, exact about loss, duplicates and order.

What it counts as wrong, each a named fault with examples:

``lost``        acknowledged to the producer, and nothing came of it
``invented``    an outcome about a place that nobody was told of, beyond what is in doubt
``conflicting`` two different outcomes of one place, or one id with two contents
``repeated``    the same record twice on a topic where once is promised
``disordered``  first occurrences of one source partition that do not follow it
``passed``      a group committed beyond a place that had no outcome then
``replayed``    after a fault more came again than the window before it had seen
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.fault.history import Acked, Asked, Came, Committed, Fault, History, Place

EXAMPLES = 5
"""Of each fault, for people."""
BREAKS = frozenset({"kill", "pause", "end"})
"""What makes a group read again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is promised of a run.

    Parameters
    ----------
    inputs:
        Topics whose acknowledged records must each have an outcome.
    once:
        Topics on which no record may come twice, not even the same.
    ordered:
        Topics whose first occurrences follow the order of their source partition.
    window:
        Topic to the seconds before a fault from which on what came out on it may come out again;
        for topics whose records have their own time (a dead letter has that of the original).
    """

    inputs: frozenset[str]
    once: frozenset[str] = frozenset()
    ordered: frozenset[str] = frozenset()
    window: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a history shows.

    Parameters
    ----------
    faults:
        Name of the fault to what shows it; empty if all promises were kept.
    replays:
        Records that came again, each time counted.
    oldest_replay:
        Seconds from the first coming of a record that came again to the fault before which it came.
    """

    acked: int
    in_doubt: int
    outcomes: int
    replays: int
    oldest_replay: float
    kills: int
    faults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def figures(self) -> dict[str, int]:
        """What every report of a run tells."""
        return {
            "acknowledged": self.acked, "in_doubt": self.in_doubt,
            "lost": self.acked - self.outcomes, "came_again": self.replays,
            "logical_duplicates": len(self.faults.get("conflicting", ())),
        }  # fmt: skip

    def __str__(self) -> str:
        wrong = [
            f"{name}: {len(found)}, such as {'; '.join(found[:EXAMPLES])}"
            for name, found in self.faults.items()
        ]
        return (
            f"{self.acked} acknowledged, {self.outcomes} with an outcome, {self.in_doubt} in "
            f"doubt, {self.replays} came again, {self.kills} kills; {' | '.join(wrong) or 'kept'}"
        )


def check(history: History, rules: Rules) -> Verdict:
    """Judge a history.

    Examples
    --------
    >>> place = ("inference.inputs", 0, 0)
    >>> history = History([Asked(0.0, "a", place[0]), Acked(0.1, "a", place)])
    >>> check(history, Rules(frozenset({place[0]}))).faults
    {'lost': ['inference.inputs/0/0']}
    """
    acked = {e.place for e in history.of(Acked) if e.place[0] in rules.inputs}
    answered = {e.name for e in history.of(Acked)}
    doubt = [e for e in history.of(Asked) if e.topic in rules.inputs and e.name not in answered]
    came = sorted(history.of(Came), key=lambda e: e.place)
    about = {e.about for e in came if e.about is not None and e.about[0] in rules.inputs}
    breaks = sorted(e.at for e in history.of(Fault) if e.what in BREAKS)
    again = list(_again(came))
    timed = [first for first, _ in again if first.place[0] in rules.window]
    ages = [age for age in (_age(first, breaks) for first in timed) if age is not None]
    found = {
        "lost": [_name(place) for place in sorted(acked - about)],
        "invented": _invented(about - acked, len(doubt)),
        "conflicting": list(_conflicting(came)),
        "repeated": [f"{_name(e.place)} ({e.id})" for _, e in again if e.place[0] in rules.once],
        "disordered": list(_disordered(came, rules.ordered)),
        "passed": list(_passed(history, came, acked)),
        "replayed": list(_replayed(again, breaks, rules.window)),
    }
    return Verdict(
        acked=len(acked), in_doubt=len(doubt), outcomes=len(acked & about), replays=len(again),
        oldest_replay=max(ages, default=0.0),
        kills=sum(e.what == "kill" for e in history.of(Fault)),
        faults={name: wrong for name, wrong in found.items() if wrong},
    )  # fmt: skip


def _invented(places: Iterable[Place], doubtful: int) -> list[str]:
    """Places without an acknowledgement; as many may be there as sendings are in doubt."""
    found = [_name(place) for place in sorted(places)]
    return found if len(found) > doubtful else []


def _conflicting(came: Sequence[Came]) -> Iterator[str]:
    """Yield what is not the same although it should be.

    A place leads to one set of records, whose ids do not depend on how batches were cut: so of one
    place there is one id a topic, and never an outcome beside a dead letter.
    """
    contents: dict[tuple[str, str], str] = {}
    for one in came:
        known = contents.setdefault((one.place[0], one.id), one.content)
        if known != one.content:
            yield f"{_name(one.place)}: {one.id} has another content"
    of: dict[Place, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in came:
        if one.about is not None:
            of[one.about][one.place[0]].add(one.id)
    for place, topics in of.items():
        if "dead-letters" in topics and len(topics) > 1:
            yield f"{_name(place)}: a dead letter and {', '.join(sorted(topics))}"
        for topic, ids in topics.items():
            if len(ids) > 1:
                yield f"{_name(place)}: {len(ids)} outcomes on {topic}"


def _again(came: Sequence[Came]) -> Iterator[tuple[Came, Came]]:
    """Yield what came again, each with its first coming (by time, then by place)."""
    first: dict[tuple[str, str], Came] = {}
    for one in sorted(came, key=lambda e: (e.at, e.place)):
        known = first.setdefault((one.place[0], one.id), one)
        if known is not one:
            yield known, one


def _age(first: Came, breaks: Sequence[float]) -> float | None:
    """Seconds from the first coming to the next fault; None if there was none after it."""
    index = bisect_left(breaks, first.at)
    return breaks[index] - first.at if index < len(breaks) else None


def _replayed(
    again: Sequence[tuple[Came, Came]], breaks: Sequence[float], window: Mapping[str, float]
) -> Iterator[str]:
    for first, second in again:
        age = _age(first, breaks)
        bound = window.get(first.place[0])
        if bound is not None and (age is None or age > bound):
            when = "no fault followed" if age is None else f"{age:.2f} s before the fault"
            yield f"{_name(second.place)}: first came {when}"


def _disordered(came: Sequence[Came], topics: frozenset[str]) -> Iterator[str]:
    """Yield first occurrences that come before one that their source has earlier."""
    seen: set[tuple[str, str]] = set()
    newest: dict[tuple[str, int, str, int], int] = {}
    for one in came:  # in log order for each partition
        topic, partition, _ = one.place
        if topic not in topics or one.about is None or (topic, one.id) in seen:
            continue
        seen.add((topic, one.id))
        lane = (topic, partition, *one.about[:2])
        if one.about[2] < newest.get(lane, -1):
            yield f"{_name(one.place)} about {_name(one.about)} after {newest[lane]}"
        newest[lane] = max(newest.get(lane, -1), one.about[2])


def _passed(history: History, came: Sequence[Came], acked: set[Place]) -> Iterator[str]:
    """Yield commits beyond a place whose first outcome came later, or never."""
    first: dict[Place, float] = {}
    for one in came:
        if one.about is not None:
            first[one.about] = min(one.at, first.get(one.about, one.at))
    places = sorted(acked)
    # The newest first outcome from the beginning of the partition up to each place.
    newest: list[float] = []
    for n, place in enumerate(places):
        before = newest[-1] if n and places[n - 1][:2] == place[:2] else 0.0
        newest.append(max(before, first.get(place, float("inf"))))
    for commit in history.of(Committed):
        low = bisect_left(places, (commit.topic, commit.partition, -1))
        high = bisect_left(places, (commit.topic, commit.partition, commit.offset))
        if high > low and newest[high - 1] > commit.at:
            late = bisect_right(newest, commit.at, low, high)
            yield f"{commit.group} committed {commit.offset}, but not yet {_name(places[late])}"


def _name(place: Place) -> str:
    return f"{place[0]}/{place[1]}/{place[2]}"
