"""The delivery layer and the strict decoder around a model, with no detectors.

It reads as `loop` does, but what is read is checked, the predictions of each record are published,
and nothing can be lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from nnsec import settings as configuration
from nnsec.network import Network
from schemas.inference import Request, decode_request
from streams.checkpoints import Checkpoints
from streams.score import expected_models
from streams.sluice import Options, Out, Record, Sluice, Stateless
from workers.bench.contestants.ours import App
from workers.bench.contestants.work import COMMIT_SECONDS, HEADERS, Clock, Task
from workers.bench.suite import as_written

_HEADERS = tuple(HEADERS)


async def main() -> None:
    """Do the work and print the rate."""
    task = Task.told()
    settings = configuration.load(task.config)
    network = Checkpoints(settings).get(task.model, 1).network
    plain = as_written(network)
    decode = partial(
        decode_request, models=expected_models(settings), limits=settings.limits,
        default_model=task.model,
    )  # fmt: skip
    device, clock, ended = ThreadPoolExecutor(1), Clock(task.rows), asyncio.Event()
    group = f"forward-{time.time_ns()}"
    app: Any = App(
        group, broker=f"kafka://{task.servers}", store="memory://", topic_disable_leader=True,
        topic_allow_declare=False, broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=10.0,
    )  # fmt: skip

    async def predict(records: Sequence[Record]) -> Sequence[Out]:
        found = [
            decode(r.key, r.value, r.headers, partition=r.partition, offset=r.offset)
            for r in records
        ]
        inputs = [one.x for one in found if isinstance(one, Request)]
        x = np.concatenate(inputs)
        best = await asyncio.get_running_loop().run_in_executor(device, _predict, plain, network, x)
        clock.note(len(x), sum(len(record.value or b"") for record in records))
        if clock.ended:
            ended.set()
        parts = np.split(best, np.cumsum([len(one) for one in inputs])[:-1])
        return [
            Out(f"{task.topic}-predictions", part.tobytes(), record.key, _HEADERS)
            for record, part in zip(records, parts, strict=True)
        ]

    options = Options({"bootstrap_servers": task.servers}, task.records, fetch_wait_ms=10)
    sluice = Sluice(app, Stateless(group, (task.topic,), predict), options=options)
    await app.start()
    await ended.wait()
    await sluice.consumer.wait_empty()
    clock.say()
    await app.stop()


def _predict(plain: nn.Module, network: Network, x: Any) -> Any:
    with torch.inference_mode():
        return plain(network.scale(x)).argmax(1).cpu().numpy()


if __name__ == "__main__":
    asyncio.run(main())
