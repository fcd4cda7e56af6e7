"""Which checkpoint serves, statement by statement."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nnsec.errors import RollbackRefused
from schemas.model_statement import ModelStatement
from streams.swap import OVERDUE, Active, Swap


def say(phase: str, epoch: int, version: int, digest: str = "") -> ModelStatement:
    return ModelStatement(
        model="m", epoch=epoch, phase=phase, version=version, digest=digest or f"d{version}",
        reason="test", issued=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


def load(swap: Swap) -> None:
    while (wanted := swap.wanted()) is not None:
        swap.loaded(wanted[0], wanted[1])


def lines(swap: Swap) -> list[tuple[int, str]]:
    return [(line.epoch, line.state) for line in swap.served(swap.active)]


def serving_one() -> Swap:
    swap = Swap("m")
    swap.apply(say("activate", 1, 7), 0.0)
    load(swap)
    return swap


def test_nothing_serves_without_a_statement() -> None:
    """An unstated model has no checkpoint and says how to get one."""
    swap = Swap("m")
    assert swap.active is None
    assert swap.wanted() is None
    assert "checkpoint create --release" in swap.problem(0.0)
    assert lines(swap) == []


def test_an_activation_serves_once_loaded() -> None:
    """A checkpoint serves when it is both activated and loaded, and not before."""
    swap = Swap("m")
    swap.apply(say("activate", 1, 7), 0.0)
    assert swap.wanted() == (7, "d7", 1)
    assert swap.active is None
    assert "being loaded" in swap.problem(0.0)
    swap.loaded(7, "d7")
    assert swap.active == Active(7, "d7", 1)
    assert swap.problem(0.0) == ""


def test_prepare_keeps_the_old_one_until_activate() -> None:
    """Between the phases the old checkpoint serves and the new one is ready."""
    swap = serving_one()
    swap.apply(say("prepare", 2, 8), 1.0)
    assert lines(swap) == [(1, "active")]
    load(swap)
    assert swap.active == Active(7, "d7", 1)
    assert lines(swap) == [(1, "active"), (2, "ready")]
    swap.apply(say("activate", 2, 8), 2.0)
    assert swap.active == Active(8, "d8", 2)
    assert lines(swap) == [(2, "active")]


def test_a_refused_checkpoint_never_serves() -> None:
    """The old one goes on, the report says why, and 10 s after activation inputs must wait."""
    swap = serving_one()
    swap.apply(say("prepare", 2, 8), 1.0)
    swap.refuse(2, "a byte differs")
    assert swap.wanted() is None
    served = swap.served(swap.active)
    assert [(one.epoch, one.state, one.reason) for one in served] == [
        (1, "active", ""), (2, "refused", "a byte differs"),
    ]  # fmt: skip
    swap.apply(say("activate", 2, 8), 5.0)
    assert swap.active == Active(7, "d7", 1)
    assert not swap.overdue(5.0 + OVERDUE)
    assert swap.overdue(5.1 + OVERDUE)
    assert "a byte differs" in swap.problem(5.1 + OVERDUE)
    swap.apply(say("activate", 3, 7), 30.0)
    assert swap.active == Active(7, "d7", 3)
    assert not swap.overdue(100.0)


def test_back_to_an_older_version_is_a_new_epoch() -> None:
    """A rollback names an older version; it is loaded again if it was let go."""
    swap = serving_one()
    swap.apply(say("activate", 2, 8), 1.0)
    load(swap)
    swap.apply(say("prepare", 3, 7), 2.0)
    assert swap.keep() == {(8, "d8"), (7, "d7")}
    assert swap.wanted() == (7, "d7", 3)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (say("activate", 1, 9), "an epoch that is over"),
        (say("prepare", 2, 9), "another checkpoint in one epoch"),
        (say("activate", 2, 8, "other"), "another digest than was prepared"),
    ],
)
def test_what_does_not_go_forward_is_refused(statement: ModelStatement, why: str) -> None:
    """Statements that do not raise the epoch change nothing."""
    swap = serving_one()
    swap.apply(say("prepare", 2, 8), 1.0)
    with pytest.raises(RollbackRefused):
        swap.apply(statement, 2.0)
    assert swap.active == Active(7, "d7", 1), why


def test_a_late_starter_loads_only_what_counts() -> None:
    """Folding the whole topic first wants the newest activated and the newest prepared."""
    swap = Swap("m")
    for epoch in range(1, 5):
        swap.apply(say("prepare", epoch, epoch), 0.0)
        swap.apply(say("activate", epoch, epoch), 0.0)
    swap.apply(say("prepare", 5, 9), 0.0)
    loaded = []
    while (wanted := swap.wanted()) is not None:
        loaded.append(wanted[0])
        swap.loaded(wanted[0], wanted[1])
    assert loaded == [4, 9]


def test_a_swap_is_reported_only_when_agents_are_there() -> None:
    """While an agent still has a batch of the old one in hand, the new one is only ready."""
    swap = serving_one()
    old = swap.active
    swap.apply(say("activate", 2, 8), 1.0)
    load(swap)
    assert [(one.epoch, one.state) for one in swap.served(old)] == [(1, "active"), (2, "ready")]
