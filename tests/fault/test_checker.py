"""The checker itself: it passes what is right, and refuses each kind of wrong by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fault.checker import Rules, check
from tests.fault.history import Acked, Asked, Came, Committed, Event, Fault, History, Place

INPUTS, OUT, LETTERS = "inference.inputs", "scores", "dead-letters"
RULES = Rules(frozenset({INPUTS}), ordered=frozenset({OUT}), window={OUT: 1.0})


def place(offset: int, partition: int = 0, topic: str = INPUTS) -> Place:
    return topic, partition, offset


def sent(*offsets: int) -> list[Event]:
    found: list[Event] = []
    for offset in offsets:
        found.append(Asked(1.0, f"n{offset}", INPUTS))
        found.append(Acked(1.5, f"n{offset}", place(offset)))
    return found


def came(about: int, at: int, when: float = 2.0, topic: str = OUT, **changes: object) -> Came:
    values = {"id": f"id-{about}", "content": f"c{about}"} | changes
    return Came(when, place(at, topic=topic), place(about), **values)  # type: ignore[arg-type]


def wrong(*events: Event, rules: Rules = RULES) -> set[str]:
    """Names of the faults found, also after the history was written and read."""
    history = History(list(events))
    verdict = check(History.loads(history.dumps()), rules)
    assert verdict.kept == (not verdict.faults)
    return set(verdict.faults)


def test_a_run_without_a_fault_is_kept() -> None:
    """Everything has one outcome, in order, and the commit comes after it."""
    history = History([*sent(0, 1), came(0, 0), came(1, 1), Committed(3.0, "score", INPUTS, 0, 2)])
    verdict = check(history, RULES)
    assert verdict.kept
    assert (verdict.acked, verdict.outcomes, verdict.replays, verdict.kills) == (2, 2, 0, 0)
    assert verdict.figures == {
        "acknowledged": 2, "in_doubt": 0, "lost": 0, "came_again": 0, "logical_duplicates": 0,
    }  # fmt: skip
    assert str(verdict).endswith("kept")


def test_a_lost_position_is_found() -> None:
    """Acknowledged, without an outcome: by position, whatever ids say."""
    assert wrong(*sent(0, 1), came(0, 0)) == {"lost"}
    assert wrong(*sent(0, 1), came(0, 0), came(0, 1, id="id-1")) >= {"lost"}


def test_what_was_never_acknowledged_need_not_come() -> None:
    """It is in doubt, and may have come or not; more than that was invented."""
    asked = Asked(1.0, "n1", INPUTS)
    assert wrong(*sent(0), asked, came(0, 0)) == set()
    assert wrong(*sent(0), asked, came(0, 0), came(1, 1)) == set()
    assert wrong(*sent(0), asked, came(0, 0), came(1, 1), came(2, 2)) == {"invented"}
    assert wrong(*sent(0), came(0, 0), came(1, 1)) == {"invented"}


@pytest.mark.parametrize(
    "second",
    [
        came(0, 1, content="other"),
        came(0, 1, id="another"),
        came(0, 0, topic=LETTERS, id="letter"),
    ],
    ids=["one id, two contents", "two ids", "a score and a dead letter"],
)
def test_two_logical_outcomes_of_one_position_conflict(second: Came) -> None:
    """The same record twice is a replay; anything else is a duplicate outcome."""
    assert wrong(*sent(0), came(0, 0), second, rules=replace(RULES, window={})) == {"conflicting"}


def test_a_replay_is_counted_and_bounded_by_the_window_before_the_fault() -> None:
    """What came within it may come again; what came before it may not, nor without a fault."""
    kill = Fault(3.0, "kill", "stream")
    late = [*sent(0), came(0, 0, 2.5), kill, came(0, 1, 4.0)]
    assert wrong(*late) == set()
    verdict = check(History(late), RULES)
    assert (verdict.replays, verdict.oldest_replay, verdict.kills) == (1, 0.5, 1)
    assert wrong(*sent(0), came(0, 0, 1.9), kill, came(0, 1, 4.0)) == {"replayed"}
    assert wrong(*sent(0), came(0, 0), came(0, 1)) == {"replayed"}
    assert wrong(*sent(0), came(0, 0, 3.5), kill, came(0, 1, 4.0)) == {"replayed"}
    letters = [came(0, at, 1.0, LETTERS) for at in (0, 1)]
    assert wrong(*sent(0), *letters, kill) == set()


def test_once_means_once() -> None:
    """On some topics not even the same record may come twice."""
    rules = Rules(frozenset({INPUTS}), once=frozenset({OUT}))
    assert wrong(*sent(0), came(0, 0), came(0, 1), rules=rules) == {"repeated"}


def test_order_is_that_of_first_occurrences_in_one_source_partition() -> None:
    """A replay may go back; a first occurrence may not."""
    free = replace(RULES, window={})
    assert wrong(*sent(0, 1), came(1, 0), came(0, 1), rules=free) == {"disordered"}
    assert wrong(*sent(0, 1), came(0, 0), came(1, 1), came(0, 2), came(1, 3), rules=free) == set()
    elsewhere = Acked(1.5, "p", place(5, 1))
    other = Came(2.0, place(0, topic=OUT), place(5, 1), "id-p", "p")
    assert wrong(*sent(0), elsewhere, other, came(0, 1), rules=free) == set()


def test_a_commit_past_an_outcome_is_found_even_if_the_outcome_came_later() -> None:
    """It was luck then: a kill in between would have lost it."""
    commit = Committed(3.0, "score", INPUTS, 0, 2)
    assert wrong(*sent(0, 1), came(0, 0), came(1, 1, 3.5), commit) == {"passed"}
    assert wrong(*sent(0, 1), came(0, 0), commit) == {"passed", "lost"}
    short = replace(commit, offset=1)
    assert wrong(*sent(0, 1), came(0, 0), came(1, 1, 3.5), short) == set()


def test_topics_that_are_no_inputs_may_lie_idle() -> None:
    """Only what is promised is demanded."""
    other = Acked(1.0, "x", place(0, topic="labels"))
    assert wrong(*sent(0), came(0, 0), other) == set()


@given(st.data(), st.integers(2, 30))
def test_any_damage_to_a_right_history_is_found(data: st.DataObject, count: int) -> None:
    """Drop, change, double, or exchange any outcome: it is refused, and for what was done."""
    right = [*sent(*range(count)), *(came(n, n, 2.0 + n) for n in range(count))]
    assert wrong(*right) == set()
    index = data.draw(st.integers(2 * count, 3 * count - 1))
    victim = right[index]
    assert isinstance(victim, Came)
    assert victim.about is not None
    damage = data.draw(st.sampled_from(["drop", "double", "divert", "exchange"]))
    if damage == "drop":
        assert wrong(*right[:index], *right[index + 1 :]) == {"lost"}
    elif damage == "double":
        extra = replace(victim, place=place(99, topic=OUT), content="other", at=99.0)
        assert "conflicting" in wrong(*right, extra)
    elif damage == "divert":
        moved = replace(victim, about=place(count + 7))
        assert wrong(*right[:index], moved, *right[index + 1 :]) >= {"lost", "invented"}
    else:
        at = count - 1 - victim.about[2]
        if at != victim.about[2]:
            here = replace(victim, place=place(at, topic=OUT))
            there = replace(right[2 * count + at], place=victim.place)  # type: ignore[call-arg]
            kept = [e for e in right if e not in (victim, right[2 * count + at])]
            assert wrong(*kept, here, there) == {"disordered"}
