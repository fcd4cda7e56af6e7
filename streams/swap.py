"""Which checkpoint of a model a worker serves: the fold of its signed statements, without I/O."""

from __future__ import annotations

from dataclasses import dataclass

from nnsec.trust.statements import Standing
from schemas.model_statement import ModelStatement
from schemas.model_status import ServedModel

OVERDUE = 10.0
"""Seconds after an activation when a worker that is not there yet stops taking inputs."""


@dataclass(frozen=True, slots=True)
class Active:
    """The checkpoint that serves a model."""

    version: int
    digest: str
    epoch: int


class Swap:
    """The statements of one model, folded; each is applied at most once, the highest epoch wins.

    The old checkpoint serves until the new one is activated *and* loaded. A worker that starts
    late folds the whole topic first and so loads only what still counts.

    Parameters
    ----------
    model:
        Its name.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.active: Active | None = None
        self._standing = Standing()
        self._activated_at = 0.0
        self._loaded: frozenset[tuple[int, str]] = frozenset()
        self._refused: dict[int, str] = {}

    def apply(self, statement: ModelStatement, now: float) -> None:
        """Fold one statement whose signature was checked.

        Parameters
        ----------
        statement:
            Of this model.
        now:
            Seconds of a clock that never goes back.

        Raises
        ------
        RollbackRefused
            For an old epoch, a repetition, and a second checkpoint in one epoch.
        """
        self._standing = self._standing.accept(statement)
        if statement.phase == "activate":
            self._activated_at = now
        self._promote()

    def wanted(self) -> tuple[int, str, int] | None:
        """The next (version, digest, epoch) to load; the activated one first."""
        for statement in (self._standing.activated, self._standing.prepared):
            if statement is None or statement.epoch in self._refused:
                continue
            if (statement.version, statement.digest) not in self._loaded:
                return statement.version, statement.digest, statement.epoch
        return None

    def loaded(self, version: int, digest: str) -> None:
        """Note that a checkpoint verified and is in memory."""
        self._loaded |= {(version, digest)}
        self._promote()

    def refuse(self, epoch: int, reason: str) -> None:
        """Note that the checkpoint of an epoch must not serve; the old one goes on."""
        self._refused[epoch] = reason

    def overdue(self, now: float) -> bool:
        """Whether this worker is behind an activation for longer than a swap may take."""
        activated = self._standing.activated
        behind = activated is not None and (
            self.active is None or self.active.epoch < activated.epoch
        )
        return behind and now - self._activated_at > OVERDUE

    def problem(self, now: float) -> str:
        """Why the model takes no inputs; empty if it does."""
        if self.active is not None and not self.overdue(now):
            return ""
        activated = self._standing.activated
        if activated is None:
            return (
                f"model {self.model!r} has no valid statement that activates a checkpoint; "
                "make one with `nnsec checkpoint create --release`"
            )
        what = f"model {self.model!r}, checkpoint {activated.version}"
        refused = self._refused.get(activated.epoch)
        return f"{what}: refused: {refused}" if refused else f"{what}: is being loaded"

    def keep(self) -> frozenset[tuple[int, str]]:
        """The (version, digest) that may serve now or next, so must stay in memory."""
        found = (self.active, self._standing.activated, self._standing.prepared)
        return frozenset((one.version, one.digest) for one in found if one is not None)

    def served(self, reported: Active | None) -> tuple[ServedModel, ...]:
        """What the worker says of this model: what is active, and what comes next.

        Parameters
        ----------
        reported:
            The newest checkpoint that every agent of the process works with; it may lag behind
            ``active`` for the length of a batch.
        """
        lines = []
        if reported is not None:
            lines.append(self._line(reported, "active"))
        following = self.active if self.active != reported else None
        for one in (following, self._standing.activated, self._standing.prepared):
            if one is None or any(line.epoch >= one.epoch for line in lines):
                continue
            refused = self._refused.get(one.epoch)
            if refused is not None:
                lines.append(self._line(one, "refused", refused))
            elif (one.version, one.digest) in self._loaded:
                lines.append(self._line(one, "ready"))
        return tuple(lines)

    def _line(self, one: Active | ModelStatement, state: str, reason: str = "") -> ServedModel:
        return ServedModel.model_validate(
            {
                "model": self.model, "epoch": one.epoch, "version": one.version,
                "digest": one.digest, "state": state, "reason": reason,
            }
        )  # fmt: skip

    def _promote(self) -> None:
        chosen = self._standing.activated
        if chosen is not None and (chosen.version, chosen.digest) in self._loaded:
            self.active = Active(chosen.version, chosen.digest, chosen.epoch)
        self._loaded &= self.keep()  # what may be evicted must be loaded again
