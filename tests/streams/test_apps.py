"""A role that is drained ends in time, even if its group never lets it go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nnsec.settings import Settings
from streams.agent import Agent
from streams.apps import Role


class Stuck:
    """An application that waits for a broker when it is stopped."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def stop(self) -> None:
        await self.released.wait()


def role(app: Stuck, *, drained: bool) -> Role:
    async def submit(*_: Any) -> Any:
        raise AssertionError("nothing is written")

    agent = cast("Agent", SimpleNamespace(role="score", topics=()))
    found = Role(agent, cast("Any", submit), Settings(), {})
    found._app = app
    found._sluice = cast("Any", SimpleNamespace(drained=drained))
    return found


async def test_a_drained_role_leaves_a_stuck_group_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is in hand and all is committed, so there is nothing to wait for."""
    app = Stuck()
    await asyncio.wait_for(role(app, drained=True).stop(0.05), 5.0)
    assert "ends without leaving its group" in caplog.text
    app.released.set()


async def test_a_role_with_work_in_hand_is_waited_for() -> None:
    """Its end is the end of its work, however long that takes."""
    app = Stuck()
    stopping = asyncio.create_task(role(app, drained=False).stop(0.05))
    done, _ = await asyncio.wait({stopping}, timeout=0.3)
    assert not done
    app.released.set()
    await asyncio.wait_for(stopping, 5.0)
