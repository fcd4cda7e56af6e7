"""What is read from Kafka and what is written to it, without the configured prefix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One record that was read.

    Parameters
    ----------
    topic:
        Without the configured prefix.
    timestamp:
        Milliseconds since 1970, as the log has it.
    headers:
        In order, with repetitions; a value may be null.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Out:
    """One record to write.

    Parameters
    ----------
    topic:
        Without the configured prefix.
    partition:
        None for murmur2 of the key, as Java and aiokafka do.
    timestamp:
        Milliseconds since 1970; None for the producer's clock.
    """

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int | None = None
    timestamp: int | None = None
