"""A bare aiokafka loop: ``getmany``, `send` or whole batches, commit. Nothing survives a mishap."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from workers.bench.contestants.work import COMMIT_SECONDS, HEADERS, MAX_BATCH, Run, verdict


async def main(*, batches: bool) -> None:
    """Do the work; with ``send``, or with ``send_batch``."""
    run = Run.told()
    consumer = AIOKafkaConsumer(
        run.source, bootstrap_servers=run.servers, group_id=run.group, enable_auto_commit=False,
        auto_offset_reset="earliest", fetch_max_wait_ms=10, max_poll_records=MAX_BATCH,
    )  # fmt: skip
    producer = AIOKafkaProducer(
        bootstrap_servers=run.servers, acks="all", max_batch_size=256 * 1024
    )
    await producer.start()
    await consumer.start()
    publish = _in_batches if batches else _one_by_one
    finished, due = False, time.monotonic() + COMMIT_SECONDS
    while not finished:
        found = await consumer.getmany(timeout_ms=200)
        finished = run.note(sum(map(len, found.values()))) if found else False
        await publish(producer, run.target, found)
        if found and (finished or time.monotonic() >= due):
            due = time.monotonic() + COMMIT_SECONDS
            await consumer.commit()
    run.say()
    await consumer.stop()
    await producer.stop()


async def _one_by_one(
    producer: AIOKafkaProducer, topic: str, found: dict[TopicPartition, list[Any]]
) -> None:
    futures = [
        await producer.send(
            topic, verdict(message.value, message.offset), key=message.key, headers=HEADERS
        )
        for messages in found.values()
        for message in messages
    ]
    await asyncio.gather(*futures)


async def _in_batches(
    producer: AIOKafkaProducer, topic: str, found: dict[TopicPartition, list[Any]]
) -> None:
    """To the partition that the record came from, which needs no hash."""
    futures = []
    lines: dict[int, list[Any]] = defaultdict(list)
    for messages in found.values():
        for message in messages:
            lines[message.partition].append(message)
    for partition, messages in lines.items():
        batch = producer.create_batch()
        for message in messages:
            value = verdict(message.value, message.offset)
            while not batch.append(timestamp=None, key=message.key, value=value, headers=HEADERS):
                futures.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
        futures.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*futures)


if __name__ == "__main__":
    asyncio.run(main(batches=sys.argv.pop(1) == "batches"))
