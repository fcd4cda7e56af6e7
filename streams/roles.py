"""The roles of the streams, each imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnsec.errors import ConfigError
from streams.agent import Agent, Context

ROLES = {
    "score": "streams.score:ScoreAgent",
    "screen": "streams.screen:ScreenAgent",
    "join": "streams.join:JoinAgent",
    "evidence": "streams.evidence:EvidenceAgent",
    "correlate": "streams.correlate:CorrelateAgent",
}


def topics(role: str) -> tuple[str, ...]:
    """What a role consumes, without the prefix.

    Raises
    ------
    ConfigError
        If there is no such role.
    """
    found: tuple[str, ...] = _find(role).topics
    return found


def build(role: str, context: Context) -> Agent:
    """Make the agent of a role.

    Raises
    ------
    ConfigError
        If there is no such role.
    """
    agent: Agent = _find(role)(context)
    return agent


def _find(role: str) -> Any:
    if role not in ROLES:
        raise ConfigError(f"no role {role!r}; there are {', '.join(ROLES)}")
    module, name = ROLES[role].split(":")
    return getattr(import_module(module), name)
