"""The delivery layer under a plain Faust app, with an agent of one function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import faust
from faust.app.base import BootStrategy

from streams.sluice import Options, Out, Record, Sluice, Stateless
from workers.bench.contestants.work import COMMIT_SECONDS, HEADERS, MAX_BATCH, Run, verdict

_HEADERS = tuple(HEADERS)


class Boot(BootStrategy):
    """The sluice has a producer of its own."""

    enable_web = False
    enable_kafka_producer = False


class App(faust.App):
    """A Faust app that starts no producer."""

    BootStrategy = Boot


async def main() -> None:
    """Do the work."""
    run, ended = Run.told(), asyncio.Event()
    app: Any = App(
        run.group, broker=f"kafka://{run.servers}", store="memory://",
        topic_disable_leader=True, topic_allow_declare=False,
        broker_commit_interval=COMMIT_SECONDS, broker_session_timeout=10.0,
    )  # fmt: skip

    async def score(records: Sequence[Record]) -> Sequence[Out]:
        if run.note(len(records)):
            ended.set()
        return [
            Out(run.target, verdict(record.value or b"", record.offset), record.key, _HEADERS)
            for record in records
        ]

    options = Options({"bootstrap_servers": run.servers}, MAX_BATCH, fetch_wait_ms=10)
    sluice = Sluice(app, Stateless(run.group, (run.source,), score), options=options)
    await app.start()
    await ended.wait()
    await sluice.consumer.wait_empty()
    run.say()
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main())
