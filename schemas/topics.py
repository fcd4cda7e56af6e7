"""The topic table: names, writers, keys, partitions and cleanup, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

DAY_MS = 24 * 3600 * 1000
UNLIMITED = -1
Scale = Literal["inputs", "control", "one"]
Role = Literal["user", "score", "screen", "join", "evidence", "correlate", "remediation",
               "operator", "trainer", "stream", "owner", "all"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic.

    Parameters
    ----------
    name:
        Without the configured prefix.
    writers:
        Roles that may write it.
    key:
        What the record key is, in words.
    scale:
        Which configured partition count holds: ``inputs`` (12), ``control`` (6) or ``one`` (1).
    retention_ms:
        Milliseconds kept; −1 for ever.
    compact:
        Whether the newest record of each key is kept instead.
    log_append_time:
        Whether the broker stamps the records: topics that users write, and those whose readers
        ask how old a record is.
    """

    name: str
    writers: tuple[Role, ...]
    key: str
    scale: Scale
    retention_ms: int = UNLIMITED
    compact: bool = False
    log_append_time: bool = False


_stamped = partial(Topic, log_append_time=True)


def _user(name: str, key: str, scale: Scale = "inputs") -> Topic:
    return _stamped(name, ("user",), key, scale, 7 * DAY_MS)


TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        _user("inference.inputs", "client"),
        _user("training.samples", "source"),
        _stamped("labels", ("user", "join"), "record id", "inputs", 7 * DAY_MS),
        _user("federated.updates", "round", "control"),
        Topic("scores", ("score",), "record id", "inputs", 7 * DAY_MS),
        Topic("summaries", ("score", "screen", "join"), "model", "control", DAY_MS),
        Topic("training.accepted", ("screen", "remediation"), "source", "inputs", 7 * DAY_MS),
        Topic("training.quarantine", ("screen",), "source", "inputs", 7 * DAY_MS),
        Topic("alerts", ("evidence",), "model", "control", 90 * DAY_MS),
        Topic("incidents", ("correlate",), "incident id", "control", 365 * DAY_MS),
        Topic("actions", ("remediation",), "model", "control", 365 * DAY_MS),
        _stamped("commands", ("operator", "trainer"), "model", "control", 365 * DAY_MS),
        _stamped("models", ("remediation", "operator"), "model", "one"),
        Topic("sources", ("remediation",), "source", "one"),
        Topic("training.revocations", ("remediation",), "revocation id", "one"),
        _stamped("models.status", ("stream",), "worker", "one", compact=True),
        Topic("state", ("owner",), "what it is the state of", "inputs", compact=True),
        Topic("meta", ("owner",), "topic", "one", compact=True),
        Topic("audit", ("all",), "writer", "control", 365 * DAY_MS),
        Topic("dead-letters", ("all",), "original key", "inputs", 30 * DAY_MS),
    )
}
