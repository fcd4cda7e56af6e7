"""Whose turn it is, as a table of actions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from schemas.action import Action
from schemas.alert import Subject
from tests.workers.stage import T0
from workers import turns


def action(
    name: str, outcome: str = "proposed", *, subject: str = "s1", order: int = 0, minute: int = 0,
    **changes: Any,
) -> Action:  # fmt: skip
    """One of the policy, or with ``incident=None`` of a command."""
    values: dict[str, Any] = {
        "id": name, "action": "quarantine", "model": "digits", "incident": UUID(int=1),
        "subject": Subject(kind="source", id=subject), "outcome": outcome, "automatic": True,
        "by": "remediation", "reason": "", "time": T0 + timedelta(minutes=minute),
        "figures": {"order": order},
    }  # fmt: skip
    return Action(**values | changes)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([], ""),
        ([action("a", minute=2), action("b", minute=1, subject="s2")], "ba"),
        ([action("a"), action("b", incident=None, minute=3)], "ba"),
        ([action("a", incident=None), action("b", "running", subject="s2", minute=3)], "ba"),
        ([action("a"), action("b", order=1)], "a"),
        ([action("a", "failed"), action("b", order=1)], ""),
        ([action("a", "awaiting_approval"), action("b", order=1, subject="s2")], "b"),
        ([action("a", "done"), action("b", order=1)], "b"),
        ([action("a", "denied"), action("b", order=1)], "b"),
        ([action("a", "running"), action("b", order=1)], "a"),
        ([action("a"), action("b", order=1, incident=UUID(int=2))], "ab"),
        ([action("a", incident=None), action("b", incident=None)], "ab"),
    ],
)
def test_turns(actions: list[Action], expected: str) -> None:
    """Begun first, then a person's, then the policy's; a later step after all before it."""
    assert "".join(one.id for one in turns.ready(actions)) == expected


@pytest.mark.parametrize(
    ("actions", "waiting", "expected"),
    [
        ([action("a"), action("b", subject="s2")], "", "a"),
        ([action("a"), action("b", subject="s2")], "a", "b"),
        ([action("a"), action("b")], "a", ""),
        ([action("a"), action("b"), action("c", subject="s2")], "a", "c"),
        ([action("a", action="rollback"), action("b", subject="s2")], "a", "b"),
        ([action("a", action="rollback"), action("b", action="rollback", subject="s2")], "a", ""),
        ([action("a", action="rollback"), action("b", action="promote", subject="s2"),
          action("c", subject="s2")], "a", ""),
        ([action("a", action="rollback"), action("b", subject="digits")], "a", "b"),
        ([action("a"), action("b", subject="s2")], "ab", ""),
    ],
)  # fmt: skip
def test_who_waits_is_passed(actions: list[Action], waiting: str, expected: str) -> None:
    """But by none on the same subject, and by no other change of what serves."""
    found = turns.first(actions, lambda one: one.id in waiting)
    assert (found.id if found else "") == expected


@pytest.mark.parametrize(
    ("outcome", "undone"), [("proposed", True), ("denied", True), ("done", False)]
)
def test_a_later_step_needs_the_earlier_one_done(outcome: str, *, undone: bool) -> None:
    """Denied is not done; another subject's does not matter."""
    later, other = action("b", order=1), action("c", order=1, subject="s2")
    known = [action("a", outcome), later, other]
    assert turns.undone(later, known) is undone
    assert not turns.undone(other, known)
