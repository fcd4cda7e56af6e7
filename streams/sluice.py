"""The sluice: a layer under any Faust app that lets no record be lost, and is fast.

It lets records through in batches, and lets an offset be committed only after all that the record
led to is acknowledged by the broker. An agent is a function from a batch to what is to be written:

    import faust

    from streams.sluice import Out, Sluice, Stateless

    app = faust.App(
        "copier",
        broker="kafka://localhost:9092",
        broker_session_timeout=10.0,
        topic_disable_leader=True,
    )


    async def copy(records):
        return [Out("copies", record.value, record.key) for record in records]


    Sluice(app, Stateless("copier", ("originals",), copy))
    app.main()

Started as ``python copier.py worker``. What makes the function raise is found by halving the batch,
and becomes a dead letter. For apps without Faust tables: state belongs in an agent of its own (see
`streams.agent.Agent`). ``docs/delivery.md`` says what is promised and how it is kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from faust.transport.drivers import aiokafka as driver

from nnsec.adapters.clients import closed, connected
from nnsec.adapters.outbox import Outbox
from nnsec.adapters.records import Out, Record
from streams.agent import Agent, Bury, Submit
from streams.delivery import Delivery
from streams.fetching import Options
from streams.stops import Notice
from streams.transport import Consumer, Transport

__all__ = ["Options", "Out", "Record", "Sluice", "Stateless"]

_REQUEST_BYTES = 16 * 1024 * 1024
_WRITE_BYTES = 256 * 1024

Function = Callable[[Sequence[Record]], Awaitable[Sequence[Out]]]


class Stateless:
    """An agent that is one function of the records alone.

    Parameters
    ----------
    role:
        Under which name its metrics are counted.
    topics:
        What it reads.
    function:
        From a batch, in log order for each partition, to what is to be written.
    """

    overlaps = True

    def __init__(self, role: str, topics: tuple[str, ...], function: Function) -> None:
        self.role = role
        self.topics = topics
        self._function = function

    async def assigned(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Nothing to take note of."""

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Call the function."""
        return await self._function(records)

    async def tick(self, now: float) -> Sequence[Out]:  # noqa: ARG002 - the interface of agents
        """Nothing depends on time."""
        return ()


class Sluice:
    """Puts one agent under an app that is not started yet.

    Parameters
    ----------
    app:
        Any ``faust.App``; its id is the consumer group. The sluice replaces its transport, so one
        app has one sluice.
    options:
        How records are read; by default what the app's own configuration says.
    submit:
        Writes records; by default a producer of the sluice's own.
    bury:
        Makes the dead letter of a record that cannot pass; by default `letter`.
    notice:
        Makes what is written about a partition whose offset is not in its log any more, once a
        minute; by default nothing, as the log and the metric say it.
    prefix:
        What Kafka's names of topics begin with, and the agent's do not.
    """

    def __init__(
        self,
        app: Any,
        agent: Agent,
        *,
        options: Options | None = None,
        submit: Submit | None = None,
        bury: Bury | None = None,
        notice: Notice = lambda stop, now: (),  # noqa: ARG005
        prefix: str = "",
    ) -> None:
        self._app = app
        self._agent = agent
        self._options = options or read_options(app)
        self._submit = submit
        self._bury = bury or letter
        self._notice = notice
        self._prefix = prefix
        self.delivery: Delivery | None = None
        """While the app runs."""
        self._attach()

    @property
    def consumer(self) -> Consumer:
        """Of the app, once it has begun to start."""
        found: Consumer = self._app.consumer
        return found

    @property
    def drained(self) -> bool:
        """Whether nothing is in hand, and all that was finished is committed."""
        intake = self.consumer.intake
        return intake.idle and not intake.committable()

    def _attach(self) -> None:
        app = self._app
        app.transport = Transport(
            app.conf.broker_consumer, app, options=self._options, role=self._agent.role,
            notice=self._notice,
        )  # fmt: skip
        names = [self._prefix + name for name in self._agent.topics]
        topic = app.topic(*names, key_serializer="raw", value_serializer="raw")

        async def deliver(stream: Any) -> None:
            del stream  # records come through the intake
            async with self._submitting() as submit:
                self.delivery = Delivery(
                    self._agent, self.consumer, submit, self._bury,
                    prefix=self._prefix, max_batch=self._options.max_batch,
                )  # fmt: skip
                await self.delivery.run()

        app.agent(topic, name=app.conf.id, concurrency=1)(deliver)
        app.topics.add(topic)  # subscribes; Faust does it when a stream is iterated over

    @asynccontextmanager
    async def _submitting(self) -> AsyncIterator[Submit]:
        """Lend the writer that was given, or one of its own."""
        if self._submit is not None:
            yield self._submit
            return
        client = self._options.client
        producer = await connected(
            lambda: AIOKafkaProducer(
                **client, acks="all", max_batch_size=_WRITE_BYTES, max_request_size=_REQUEST_BYTES
            )
        )
        outbox = Outbox(producer, lambda name: self._prefix + name, {}, _REQUEST_BYTES)
        try:
            yield outbox.submit
        finally:
            await outbox.close()
            await closed(producer)


def read_options(app: Any) -> Options:
    """What an app's own configuration says of reading.

    Parameters
    ----------
    app:
        ``broker``, ``broker_credentials``, ``broker_max_poll_records`` and
        ``broker_session_timeout`` count.
    """
    conf = app.conf
    client: Mapping[str, Any] = {
        "bootstrap_servers": driver.server_list(conf.broker_consumer, _PORT),
        **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
    }
    return Options(
        client,
        max_batch=conf.broker_max_poll_records or 512,
        session_timeout=conf.broker_session_timeout,
    )


_PORT = 9092


def letter(record: Record, error: Exception, attempts: int) -> Out:
    """The dead letter of a record: as it was, with what is wrong in headers.

    It goes to the topic's name with ``-dead-letters`` behind it. A record of more than 512 KiB is
    cut to the beginnings of its key and value, without its headers, so that the letter fits a topic
    of Kafka's default limit.
    """
    said = {
        "error": f"{type(error).__name__}: {error}"[:1024], "attempts": attempts,
        "topic": record.topic, "partition": record.partition, "offset": record.offset,
    }  # fmt: skip
    key, value, more = record.key, record.value, record.headers
    size = sum(len(part or b"") for part in (key, value, *(content for _, content in more)))
    if size + sum(len(name) for name, _ in more) > _LETTER_BYTES:
        said["cut"] = size
        key, value, more = (key or b"")[:_KEPT_BYTES], (value or b"")[:_KEPT_BYTES], ()
    headers = tuple((f"dead-letter-{name}", str(value).encode()) for name, value in said.items())
    return Out(f"{record.topic}-dead-letters", value, key, (*more, *headers))


_LETTER_BYTES = 512 * 1024
_KEPT_BYTES = 64 * 1024
