"""Redis: its keys, a client, and its errors as ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    RedisError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Settings

TIMEOUT = 5.0
"""Seconds until an answer is overdue."""
NO_URL = (
    "[redis] url is none that can be used: it is redis://[[user]:password@]host[:port][/number], "
    "where / # ? @ : and % in user, password and query are percent-encoded (@ is %40)"
)

_SIGNS = ("WRONGTYPE", "value is not an integer", "would overflow")
"""What servers say, with or without a script around it, when a key holds something else."""


class Spoilt(TransientError):  # noqa: N818 - the name says what it is
    """A key holds what the view did not write."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys.

    Examples
    --------
    >>> Keys("nnsec:").source("a b~c/d")
    'nnsec:source:a%20b%7Ec%2Fd'
    """

    prefix: str

    @property
    def positions(self) -> str:
        """Offsets that were applied last."""
        return f"{self.prefix}positions"

    @property
    def active(self) -> str:
        """Incidents that are not finished, by time of the last change."""
        return f"{self.prefix}incidents:active"

    @property
    def log(self) -> str:
        """Transitions, as a stream."""
        return f"{self.prefix}incidents:log"

    def incident(self, name: str) -> str:
        """One incident."""
        return f"{self.prefix}incident:{escape(name)}"

    def model(self, name: str) -> str:
        """One model."""
        return f"{self.prefix}model:{escape(name)}"

    def source(self, name: str) -> str:
        """One source of training samples."""
        return f"{self.prefix}source:{escape(name)}"

    def counted(self, place: str) -> str:
        """The keys of the sources counted in a partition, by the offset of their last record."""
        return f"{self.prefix}sources:{place}"

    def pattern(self, kind: str) -> str:
        r"""What matches the keys of all incidents, models or sources.

        >>> Keys("a*:").pattern("source")
        'a\\*:source:*'
        """
        start = "".join(f"\\{c}" if c in "*?[]\\" else c for c in self.prefix)
        return f"{start}{kind}:*"

    def owned(self) -> tuple[str, ...]:
        """Patterns of all that the view writes, and nothing else."""
        kinds = ("incidents", "incident", "model", "source", "sources")
        return (self.pattern("positions").removesuffix(":*"), *map(self.pattern, kinds))


def escape(name: str) -> str:
    """Percent-encode outside ``[A-Za-z0-9._-]``, for ids that are the users' words."""
    return quote(name, safe="").replace("~", "%7E")


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[redis.Redis]:
    """Open a client that answers or fails within `TIMEOUT`, and never tries twice by itself.

    Raises
    ------
    ConfigError
        If the URL is none.
    """
    url = settings.redis.url
    if url == "embedded":
        raise ConfigError("[redis] url is 'embedded', which only `nnsec up` starts; name a URL")
    try:
        parts = urlsplit(url)
        if parts.scheme != "unix" and "@" in url.partition(parts.netloc)[2]:
            raise ValueError  # noqa: TRY301 - cut within a password, which would be host and port
        client: redis.Redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # Neither the URL nor the error: one cut at a wrong place shows a part of the password.
        raise ConfigError(NO_URL) from None
    try:
        yield client
    finally:
        await client.aclose()


async def read_hash(client: redis.Redis, key: str) -> dict[str, str]:
    """All fields of a hash; empty where there is none."""
    found: Mapping[Any, Any] = await client.hgetall(key)
    return {str(name): str(value) for name, value in found.items()}


@contextmanager
def converted() -> Iterator[None]:
    """Turn errors of Redis into ours.

    Raises
    ------
    ConfigError
        If the server refuses the password.
    Spoilt
        If a key is of another type, or a counter is no number.
    TransientError
        For all else: it is away, loading, out of memory or read-only, and may come back.
    """
    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(f"[redis] url: {error}") from error
    except (RedisConnectionError, RedisTimeoutError, BusyLoadingError, NoScriptError) as error:
        raise TransientError(f"Redis: {error}") from error
    except RedisError as error:
        if any(sign in str(error) for sign in _SIGNS):
            raise Spoilt(f"Redis holds what is not ours: {error}") from error
        raise TransientError(f"Redis refused: {error}") from error
