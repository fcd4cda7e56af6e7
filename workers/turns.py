"""Whose turn it is: the order in which the actions of one model run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

from schemas.action import Action
from schemas.alert import Subject
from workers.desk import ON_MODEL

PASSED = frozenset({"done", "denied"})

Chain = tuple[UUID | None, str, str]
"""What the policy wants for one subject of one incident, one action after the other."""


def ready(actions: Iterable[Action]) -> list[Action]:
    """What may begin or go on: what was begun first, then what a person wants, then the policy.

    Parameters
    ----------
    actions:
        All of one model, in the order of the log; it decides between actions of one time.

    Returns
    -------
    Running and proposed ones; of a subject's actions in an incident only the first not yet passed.
    """
    known = list(actions)
    first: dict[Chain, int] = {}
    for one in known:
        if one.outcome not in PASSED:
            first[_chain(one)] = min(_order(one), first.get(_chain(one), _order(one)))
    found = [
        one
        for one in known
        if one.outcome == "running"
        or (one.outcome == "proposed" and (not one.incident or _order(one) <= first[_chain(one)]))
    ]
    return sorted(found, key=lambda a: (a.outcome != "running", a.incident is not None, a.time))


def first(actions: Iterable[Action], waits: Callable[[Action], bool]) -> Action | None:
    """The first one that does not wait for something away, nor for one that does.

    What comes after on the same subject waits too, and on the same model if what waits changes
    which checkpoint serves: these keep their order.

    Parameters
    ----------
    actions:
        As of `ready`.
    """
    behind: set[Subject] = set()
    for one in actions:
        touched = {one.subject}
        if one.action in ON_MODEL:
            touched.add(Subject(kind="model", id=one.model))
        if touched & behind or waits(one):
            behind |= touched
        else:
            return one
    return None


def undone(action: Action, actions: Iterable[Action]) -> bool:
    """Whether an earlier action of the policy on the same subject is not done."""
    return action.incident is not None and any(
        other.outcome != "done"
        and _order(other) < _order(action)
        and _chain(other) == _chain(action)
        for other in actions
    )


def _chain(action: Action) -> Chain:
    return action.incident, action.subject.kind, action.subject.id


def _order(action: Action) -> int:
    return int(action.figures.get("order", 0))
