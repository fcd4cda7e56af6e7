"""Commands of operators and the trainer; on the wire inside a signed envelope."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from schemas.base import Event, Time

CommandKind = Literal[
    "approve", "deny", "dismiss", "quarantine", "release", "drop", "rollback", "promote",
    "halt", "resume",
]  # fmt: skip


class Command(Event):
    """What an operator wants done once, until ``expires``.

    ``target`` names the object: an incident, an action id, a source, or a checkpoint version.
    """

    event: ClassVar[str] = "command"

    id: str
    kind: CommandKind
    model: str
    target: str
    reason: str
    issued: Time
    expires: Time
    parameters: dict[str, Any] = {}

    @property
    def action_id(self) -> str:
        """The action on ``actions`` that shows that it was carried out."""
        return f"command-{self.id}"
