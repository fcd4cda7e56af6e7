"""How to reach Kafka: options, names, and patience while it is away."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from nnsec.adapters import batches
from nnsec.errors import ConfigError
from nnsec.settings import Kafka, Settings

PASSWORD = "NNSEC_SASL_PASSWORD"  # noqa: S105 - the name of a variable
RETRY_SECONDS = 0.25
_REPEAT_SECONDS = 30.0

logger = logging.getLogger(__name__)

batches.install()


class Client(Protocol):
    """What producers, consumers and admin clients have in common."""

    def start(self) -> Awaitable[None]:
        """Connect."""
        ...


C = TypeVar("C", bound=Client)


def client_options(kafka: Kafka) -> dict[str, Any]:
    """Options that every aiokafka client takes.

    Raises
    ------
    ConfigError
        If a file that it names cannot be read, or the address is still ``embedded``.
    """
    if kafka.bootstrap_servers == "embedded":
        raise ConfigError(
            "no broker is running here: start `nnsec up`, or set [kafka] bootstrap_servers"
        )
    servers = [part.strip() for part in kafka.bootstrap_servers.split(",") if part.strip()]
    options: dict[str, Any] = {
        "bootstrap_servers": servers, "security_protocol": kafka.security_protocol,
        "retry_backoff_ms": 100,
    }  # fmt: skip
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = _password(kafka)
    return options


def patient_wait_ms(kafka: Kafka) -> int:
    """How long a fetch may wait where nobody waits for its answer in milliseconds.

    The embedded broker sleeps through half of it even if a record comes, but every empty answer
    costs both sides time that inputs need: ten times the wait of those that are in a hurry.

    >>> patient_wait_ms(Kafka(fetch_max_wait_ms=10))
    100
    """
    return 10 * kafka.fetch_max_wait_ms


def topic_name(settings: Settings, name: str) -> str:
    """The topic's name in Kafka.

    >>> topic_name(Settings(), "scores")
    'nnsec.scores'
    """
    return settings.kafka.prefix + name


def bare_name(settings: Settings, topic: str) -> str:
    """The topic's name without the prefix.

    >>> bare_name(Settings(), "nnsec.scores")
    'scores'
    """
    return topic.removeprefix(settings.kafka.prefix)


class Outage(logging.Handler):
    """Says once that the broker is away and once that it is back.

    As handler of aiokafka's loggers it lets one line of a kind through in 30 s, where aiokafka
    itself writes some 60 a second while a broker is away.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._said: dict[str, float] = {}
        self.since: float | None = None
        """When the broker went away, by the clock; None while it answers."""

    def away(self, reason: object) -> None:
        """Note that the broker does not answer."""
        if self.since is None:
            self.since = self._clock()
            logger.warning("Kafka does not answer, waiting for it: %s", reason)

    def back(self) -> None:
        """Note that it answered."""
        if self.since is not None:
            logger.warning("Kafka is back after %.1f s", self._clock() - self.since)
            self.since = None

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, unless one like it was passed on lately."""
        now, kind = self._clock(), f"{record.name} {record.msg}"
        if now - self._said.get(kind, -_REPEAT_SECONDS) >= _REPEAT_SECONDS:
            self._said[kind] = now
            logger.log(
                logging.INFO if self.since is not None else logging.WARNING,
                "%s: %s", record.name, record.getMessage(),
            )  # fmt: skip

    def listen(self) -> None:
        """Take over the loggers of the client library."""
        for name in ("aiokafka", "faust.transport.drivers.aiokafka"):
            library = logging.getLogger(name)
            library.handlers = [self]
            library.propagate = False


outage = Outage()
"""One for the process: there is one Kafka."""


async def connected(make: Callable[[], C]) -> C:
    """Start a client, waiting for the broker for as long as it takes.

    Parameters
    ----------
    make:
        Builds the client anew for each attempt, as one that failed cannot be started again.
    """
    while True:
        client = make()
        try:
            await client.start()
        except (KafkaError, OSError) as error:
            await closed(client)
            outage.away(error)
            await asyncio.sleep(RETRY_SECONDS)
        except BaseException:
            await closed(client)
            raise
        else:
            outage.back()
            return client


async def closed(client: Any) -> None:
    """Stop a client of any kind; that it cannot say good-bye to the broker does not matter."""
    await asyncio.sleep(0)  # aiokafka does not expect that tasks of its own have not begun yet
    try:
        await (client.close() if hasattr(client, "close") else client.stop())
    except (KafkaError, OSError) as error:
        logger.info("closing a client: %s", error)
    except asyncio.CancelledError:
        # aiokafka passes on that it cancelled a task of its own, as when the broker is dead.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        logger.info("closing a client: a request was given up")


def _ssl_context(kafka: Kafka) -> ssl.SSLContext:
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=kafka.ssl_cafile or None,
            certfile=kafka.ssl_certfile or None,
            keyfile=kafka.ssl_keyfile or None,
        )
    except OSError as error:
        raise ConfigError(f"[kafka] ssl_… files cannot be used: {error}") from error
    return context


def _password(kafka: Kafka) -> str:
    if not kafka.sasl_password_file:
        return os.environ.get(PASSWORD, "")
    try:
        return Path(kafka.sasl_password_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[kafka] sasl_password_file cannot be read: {error}") from error
