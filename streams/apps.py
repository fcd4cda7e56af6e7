"""One Faust application per role: one group, one consumer, one agent."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

import faust
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager

from nnsec.adapters.clients import client_options, patient_wait_ms, topic_name
from nnsec.settings import Settings
from streams import integrity
from streams.agent import Agent, Submit
from streams.poison import dead_letter
from streams.sluice import Options, Sluice

HURRIED = frozenset({"score"})
"""Roles whose answers are waited for; the others may read some 50 ms later."""

logger = logging.getLogger(__name__)


class Boot(BootStrategy):
    """No web server, no producer: outputs go through a publisher that is awaited."""

    enable_web = False
    enable_kafka_producer = False


class NoTables(TableManager):
    """Starts at once: Faust waits a second for tables that others may still add."""

    async def on_start(self) -> None:
        """Let the consumer subscribe."""
        await self._update_channels()
        await self.recovery.start()


class RoleApp(faust.App):
    """Faust, writing no folder of its own."""

    BootStrategy = Boot

    def _create_directories(self) -> None:
        """Leave the working directory alone: there are no tables."""


class Role:
    """One role: its agent, its group and its deliveries.

    Parameters
    ----------
    logs:
        Topic, without the prefix, to the identity of its log.
    """

    def __init__(
        self, agent: Agent, submit: Submit, settings: Settings, logs: Mapping[str, UUID]
    ) -> None:
        self.agent = agent
        self._submit = submit
        self._settings = settings
        self._logs = logs
        self._app: Any = None
        self._sluice: Sluice | None = None

    async def start(self) -> None:
        """Join the group; returns when partitions were assigned, be they none."""
        self._app = self._build()
        await self._app.start()

    async def stop(self, patience: float = math.inf) -> None:
        """Finish the batch in hand, commit and leave the group.

        Parameters
        ----------
        patience:
            Seconds after which a role that is drained does not wait to leave its group any more: a
            broker in the middle of a rebalance may never let it go. Its partitions go to others
            when its session ends.
        """
        if self._app is None:
            return
        stopping = asyncio.create_task(self._app.stop())
        limit = None if math.isinf(patience) else patience
        done, _ = await asyncio.wait({stopping}, timeout=limit)
        if not done and self._sluice is not None and self._sluice.drained:
            logger.warning("%s: drained, and ends without leaving its group", self.agent.role)
            return
        await stopping

    async def crashed(self) -> BaseException:
        """Wait until Faust gives up, and say why."""
        await self._app._crashed.wait()  # noqa: SLF001 - the service's own signal, not exposed
        return self._app.crash_reason or RuntimeError("no reason given")

    def problems(self) -> tuple[str, ...]:
        """What keeps this role from being ready."""
        role = self.agent.role
        sluice = self._sluice
        if sluice is None or sluice.delivery is None or not sluice.delivery.settled:
            return (f"{role}: no partitions assigned yet",)
        stops = sluice.consumer.stops.values()
        return tuple(f"{role}: stopped {stop.topic}/{stop.partition}: {stop}" for stop in stops)

    def _build(self) -> Any:
        kafka = self._settings.kafka
        group = topic_name(self._settings, self.agent.role)
        app = RoleApp(
            group,
            broker=[f"kafka://{server}" for server in kafka.bootstrap_servers.split(",")],
            store="memory://",
            TableManager=NoTables,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            table_standby_replicas=0,
            key_serializer="raw",
            value_serializer="raw",
            broker_session_timeout=kafka.session_timeout,
            broker_rebalance_timeout=max(kafka.session_timeout, 10.0),
            broker_heartbeat_interval=1.0,
            broker_commit_interval=kafka.commit_interval,
            broker_max_poll_records=kafka.max_batch,
            stream_wait_empty=True,
            reply_create_topic=False,
        )
        hurried = self.agent.role in HURRIED
        self._sluice = Sluice(
            app,
            self.agent,
            options=Options(
                client_options(kafka),
                max_batch=kafka.max_batch,
                fetch_wait_ms=kafka.fetch_max_wait_ms if hurried else patient_wait_ms(kafka),
                session_timeout=kafka.session_timeout,
            ),
            submit=self._submit,
            bury=partial(dead_letter, self._settings, self._logs),
            notice=partial(integrity.alerts, self._settings, self._logs, self.agent.role),
            prefix=kafka.prefix,
        )
        return app


async def keep_running(role: Role, wait: float = 1.0) -> None:
    """Run a role until cancelled; if Faust gives up, start it anew, for ever."""
    while True:
        try:
            await role.start()
            reason = await role.crashed()
        except Exception as error:  # noqa: BLE001 - whatever it was, the role must come back
            reason = error
        logger.error("%s ended and starts anew", role.agent.role, exc_info=reason)
        await role.stop()
        await asyncio.sleep(wait)
