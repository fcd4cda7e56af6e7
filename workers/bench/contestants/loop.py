"""A bare loop around a model as users write it: ``getmany``, and the forward pass on what came.

It reads a topic from its beginning, 512 inputs at a time, and commits. It checks nothing, detects
nothing and publishes nothing. With ``idle`` it does not even run the model: what the broker and
aiokafka can do.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import torch
from aiokafka import AIOKafkaConsumer

from nnsec import settings as configuration
from streams.checkpoints import Checkpoints
from workers.bench.contestants.work import COMMIT_SECONDS, Clock, Task
from workers.bench.suite import as_written


async def main() -> None:
    """Do the work and print the rate."""
    task = Task.told()
    settings = configuration.load(task.config)
    shape = settings.models[task.model].input.shape
    width = int(np.prod(shape))
    network = Checkpoints(settings).get(task.model, 1).network
    plain = as_written(network)
    consumer = AIOKafkaConsumer(
        task.topic, bootstrap_servers=task.servers, group_id=f"loop-{time.time_ns()}",
        enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=10,
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )  # fmt: skip
    await consumer.start()
    clock, due = Clock(task.rows), 0.0
    while not clock.ended:
        found = await consumer.getmany(timeout_ms=200, max_records=task.records)
        values = [message.value for messages in found.values() for message in messages]
        if not values:
            continue
        if "idle" not in task.how:
            tails = [_tail(value, task.each * width) for value in values]
            _predict(plain, network, np.concatenate(tails), shape)
        clock.note(task.each * len(values), sum(map(len, values)))
        if clock.ended or time.monotonic() >= due:
            due = time.monotonic() + COMMIT_SECONDS
            await consumer.commit()
    clock.say()
    await consumer.stop()


def _tail(value: bytes, size: int) -> Any:
    """A tensor in binary form is the end of its record."""
    return np.frombuffer(value, np.uint8, offset=len(value) - size)


def _predict(plain: Any, network: Any, x: Any, shape: tuple[int, ...]) -> None:
    with torch.inference_mode():
        scaled = network.scale(x.reshape(-1, *shape))
        plain(scaled).argmax(1).cpu().numpy()


if __name__ == "__main__":
    asyncio.run(main())
