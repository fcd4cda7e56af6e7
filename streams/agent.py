"""What a role is: a function from records to outputs, and all that it may use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings

if TYPE_CHECKING:
    from streams.checkpoints import Checkpoints
    from streams.control import Control


Stale = Callable[[], bool]
Submit = Callable[[Sequence[Out], Stale], Awaitable[asyncio.Future[bool]]]
"""As `nnsec.adapters.outbox.Outbox.submit`."""
Bury = Callable[[Record, Exception, int], Out]
"""Makes the dead letter of a record that raised an error in so many attempts."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the process shares between its roles.

    Parameters
    ----------
    logs:
        Topic, without the prefix, to the identity of its log.
    worker:
        Identity of this process in ``models.status``.
    """

    settings: Settings
    logs: Mapping[str, UUID]
    control: Control
    checkpoints: Checkpoints
    worker: UUID


class Agent(Protocol):
    """One role; the delivery layer alone acknowledges, retries and writes dead letters.

    `process`, `tick` and `assigned` of one agent never run at the same time. The outputs of a batch
    may still be on their way when the next is processed, if the agent has an attribute
    ``overlaps`` that is true: it may if it has no state, or takes up all of it anew in `assigned`.
    If it has a number ``at_once``, so many batches of a backlog are in `process` at once, so that
    one is decoded while another waits for a model: it may if it has no state at all.
    If it has a method ``settle()``, that is called before `process` whenever all that earlier
    batches led to is acknowledged.
    """

    role: str
    """Its group is ``<prefix><role>``."""

    topics: tuple[str, ...]
    """What it consumes, without the prefix."""

    async def assigned(
        self, partitions: frozenset[tuple[str, int]]
    ) -> Mapping[tuple[str, int], int] | None:
        """Take note of all (topic, partition) that this worker holds after a rebalance.

        Records at and after the committed offsets are delivered (again) after it, so state must
        be as of then; or the answer names, by (topic, partition), other offsets to begin at.
        """

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Turn one micro-batch, in log order per partition, into its outputs.

        The batch is acknowledged after all outputs were. If this raises, state must be as if it
        had not been called, for the batch is split to find the record that cannot pass; a
        ``TransientError`` has the whole batch tried again until it passes. Where an output is
        larger than its topic takes, `assigned` comes first, and then the records one by one.
        """
        ...

    async def tick(self, now: float) -> Sequence[Out]:
        """Do what time asks for, about every 0.25 s; ``now`` is seconds since 1970.

        All that earlier batches led to is acknowledged by then, so that a snapshot is never ahead.
        """
        ...
