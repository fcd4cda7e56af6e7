"""A stock Faust agent: ``take(512)``, awaited ``topic.send``, Faust's own commits."""

from __future__ import annotations

import asyncio
from typing import Any

import faust

from workers.bench.contestants.work import COMMIT_SECONDS, HEADERS, MAX_BATCH, Run, verdict


async def main() -> None:
    """Do the work."""
    run, ended = Run.told(), asyncio.Event()
    app: Any = faust.App(
        run.group, broker=f"kafka://{run.servers}", store="memory://", web_enabled=False,
        topic_disable_leader=True, topic_allow_declare=False, key_serializer="raw",
        value_serializer="raw", broker_max_poll_records=MAX_BATCH,
        broker_commit_interval=COMMIT_SECONDS, broker_session_timeout=10.0,
        broker_heartbeat_interval=1.0, producer_max_batch_size=256 * 1024,
        consumer_auto_offset_reset="earliest",
    )  # fmt: skip
    source = app.topic(run.source, key_serializer="raw", value_serializer="raw")
    target = app.topic(run.target, key_serializer="raw", value_serializer="raw")

    async def score(stream: Any) -> None:
        async for events in stream.take_events(MAX_BATCH, within=0.01):
            finished = run.note(len(events))
            await asyncio.gather(
                *[
                    await target.send(
                        key=event.message.key, headers=HEADERS,
                        value=verdict(event.message.value, event.message.offset),
                    )
                    for event in events
                ]
            )  # fmt: skip
            if finished:
                ended.set()

    app.agent(source, name="score", concurrency=1)(score)
    await app.start()
    await ended.wait()
    await app.consumer.commit()
    run.say()
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main())
