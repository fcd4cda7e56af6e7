"""The guards of the automation: a pure fold of actions that says what may be done without a person.

At most one automatic rollback per model in 10 minutes and max(1, 10 %) of all models in an hour;
quarantines of at most max(1, 10 %) of the active sources in an hour; a target is not touched again
while it cools down; what a person reversed is not done again by a machine; a target that is nobody
or many is refused whoever asks; `halt` stops all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from nnsec.errors import GuardRefused
from schemas.action import Action

COOL_DOWN = timedelta(minutes=10)
HOUR = timedelta(hours=1)
SHARE = 0.1
MEMORY = timedelta(days=1)
"""How long a reversal by a person stands against the automation."""
EVERYTHING = "*"
SWITCHES = frozenset({"halt", "resume"})
NOBODY = frozenset({"", "anonymous"})
"""Names that are no target at all; ``anonymous`` is whoever did not say who he is."""
WIDE = NOBODY | {"*", "all", "any", "unknown"}
"""Names that are no single model."""


@dataclass(frozen=True, slots=True)
class Request:
    """What someone wants to do.

    Parameters
    ----------
    action:
        ``quarantine``, ``rollback``, …
    model:
        The model that it is for.
    target:
        A source, or for a rollback the model.
    version:
        The active version that a rollback would leave; None where that means nothing.
    automatic:
        False if a person asked or approved: then only the target is judged.
    """

    action: str
    model: str
    target: str
    automatic: bool
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Population:
    """How much there is that could be acted on: configured models, sources of the last hour."""

    models: int
    sources: int


@dataclass(frozen=True, slots=True)
class _Effect:
    """One action that began to change something."""

    kind: Literal["quarantine", "release", "rollback", "promote"]
    model: str
    target: str
    automatic: bool
    time: datetime
    ran: bool
    left: int | None
    reached: int | None


class Ledger:
    """What was done so far, folded from ``actions`` in their order.

    Examples
    --------
    >>> Ledger().halted("digits")
    False
    """

    def __init__(self) -> None:
        self._effects: dict[str, _Effect] = {}
        self._halts: dict[str, tuple[datetime, bool]] = {}

    def learn_one(self, action: Action) -> None:
        """Fold one action result; the same one again changes nothing."""
        if action.action in SWITCHES:
            if action.outcome == "done":
                where = action.model or EVERYTHING
                # The last in the log counts, also where a clock stepped back in between.
                time = max(action.time, self._halts.get(where, (action.time, False))[0])
                self._halts[where] = (time, action.action == "halt")
            return
        known = self._effects.get(action.id)
        began = known if known is not None and known.ran else None
        if action.figures.get("needed") is False or action.outcome == "denied":
            # What ran may have changed something, whatever a later try of it was found to be.
            if began is None:
                self._effects.pop(action.id, None)
            return
        kind = action.action
        if kind not in {"quarantine", "release", "rollback", "promote"}:
            return
        if action.outcome not in {"running", "done", "failed"}:
            return
        self._effects[action.id] = _Effect(
            kind=kind,  # type: ignore[arg-type]
            model=action.model,
            target=action.model if kind in {"rollback", "promote"} else action.subject.id,
            # A person who approves another try does not make the first one his own.
            automatic=began.automatic if began else action.automatic,
            time=began.time if began else action.time,
            ran=began is not None or action.outcome == "running",
            left=_version(action, "from"),
            reached=_version(action, "to"),
        )

    @property
    def switched(self) -> datetime | None:
        """The time of the newest `halt` or `resume`, of whatever model; a later one is after it."""
        return max((time for time, _ in self._halts.values()), default=None)

    def halted(self, model: str) -> bool:
        """Whether the kill switch is on, for all models or for this one.

        The newer of the two holds, so that `resume` of one model is possible under a wide `halt`.
        """
        found = [self._halts[name] for name in (EVERYTHING, model) if name in self._halts]
        return max(found)[1] if found else False

    def check(
        self,
        request: Request,
        *,
        now: datetime,
        population: Population,
        begun: tuple[datetime, str] | None = None,
    ) -> None:
        """Let a request pass, or say why not.

        Parameters
        ----------
        begun:
            Time and id of the action itself, if it is said to run already: then only what began
            before it counts, so that of those who began at once the first ones may go on.

        Raises
        ------
        GuardRefused
            With the guard and its figures; a person may still approve, unless the target itself
            is refused.
        """
        check_target(request)
        if not request.automatic:
            return
        if self.halted(request.model):
            raise GuardRefused("kill switch: the automation is halted; `resume` ends that")
        known = self._before(begun)
        _check_reversal(request, known, now)
        same = [e for e in known if e.kind == request.action and e.automatic]
        target = request.model if request.action == "rollback" else request.target
        latest = max((e.time for e in same if e.target == target), default=None)
        if latest is not None and now - latest < COOL_DOWN:
            raise GuardRefused(
                f"cool-down: {request.action} of {target} was done by itself less than "
                f"{COOL_DOWN.total_seconds() / 60:.0f} minutes ago"
            )
        recent = {e.target for e in same if now - e.time < HOUR}
        total = population.models if request.action == "rollback" else population.sources
        allowed = max(1, int(SHARE * total))
        if len(recent | {target}) > allowed:
            raise GuardRefused(
                f"rate: {len(recent)} of {total} were acted on in the last hour, "
                f"at most {allowed} may be without a person"
            )

    def _before(self, begun: tuple[datetime, str] | None) -> list[_Effect]:
        """All effects, or those that began before one of them."""
        if begun is None:
            return list(self._effects.values())
        return [
            effect
            for name, effect in self._effects.items()
            if name != begun[1] and (effect.time, name) < begun
        ]


def _check_reversal(request: Request, known: list[_Effect], now: datetime) -> None:
    """Refuse to do again what was done by itself and then reversed: no flapping."""
    effects = sorted((e for e in known if now - e.time < MEMORY), key=lambda e: e.time)
    undone = False
    acted = False
    for effect in effects:
        if request.action == "quarantine" and effect.target == request.target:
            acted = acted or (effect.kind == "quarantine" and effect.automatic)
            undone = undone or (acted and effect.kind == "release")
        elif request.action == "rollback" and effect.target == request.model:
            left = effect.left is not None and effect.left == request.version
            back = effect.reached is not None and effect.reached == request.version
            acted = acted or (effect.kind == "rollback" and effect.automatic and left)
            undone = undone or (acted and back)
    if undone:
        raise GuardRefused(
            f"flapping: {request.action} of {request.target} was done and reversed within a "
            "day; a person must decide now"
        )


def check_target(request: Request) -> None:
    """Refuse a source that is nobody, and a model that is none or many.

    A source chooses its own name, and it is compared as it stands: ``*`` is the one source of that
    name. Were such names refused, they would shield who bears them.

    Raises
    ------
    GuardRefused
        Whoever asks: no person can approve that.
    """
    model = request.model
    if request.target in NOBODY or model.strip().lower() in WIDE or EVERYTHING in model:
        name = request.target if request.target in NOBODY else model
        raise GuardRefused(f"target: {name!r} is not one single target")


def _version(action: Action, name: str) -> int | None:
    value = action.figures.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
