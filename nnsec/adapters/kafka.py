"""Kafka as both sides use it: options, declaration, reading to the end, publishing."""

from __future__ import annotations

from nnsec.adapters.clients import (
    bare_name,
    client_options,
    closed,
    connected,
    outage,
    patient_wait_ms,
    topic_name,
)  # fmt: skip
from nnsec.adapters.declaration import declare, identities
from nnsec.adapters.positions import Bounds, Positions, commit_start
from nnsec.adapters.publisher import Publisher, TooLarge, producer, publisher
from nnsec.adapters.tail import Tail, read_to_end, record_of

__all__ = [
    "Bounds", "Positions", "Publisher", "Tail", "TooLarge", "bare_name", "client_options", "closed",
    "commit_start", "connected", "declare", "identities", "outage", "patient_wait_ms", "producer",
    "publisher", "read_to_end", "record_of", "topic_name",
]  # fmt: skip
