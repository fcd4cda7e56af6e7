"""What the screen remembers of the sources of a partition, and how it outlives a kill.

The state of a partition is the windows of its sources as of an offset. A snapshot is both, so that
reading again from that offset leads to what there was. It is one record on ``state`` under
``screen/<partition>``; a large one is cut into records under ``screen/<partition>/<slot>/<i>``, in
two slots by turns, and the first record, written when they are acknowledged, says which slot holds.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from nnsec.adapters.records import Out
from nnsec.errors import DigestMismatch
from nnsec.poisoning import SourceWindow

SOURCES = 256
"""Windows in a partition; when there are more, the one goes that is worth least."""
PART_BYTES = 900_000
"""Bytes of a snapshot in one record, under what every broker takes."""

Key = tuple[str, str]
"""Model and source."""


class Windows:
    """The windows of the sources of one partition, as of an offset.

    A window that goes is the one with the least `SourceWindow.worth` over the age when it was last
    opened, of equals the least recently used; the age is then what that was. So a window of n
    samples outlasts n rounds of new names, each as many as there is room for, and is no longer kept
    for ever when its source has gone.

    Source: the greedy-dual rule, Young, "The k-server dual and loose competitiveness for paging"
    (1994).

    Parameters
    ----------
    offset:
        Of the record that comes next.
    capacity:
        Windows kept.
    """

    def __init__(self, offset: int, capacity: int = SOURCES) -> None:
        self.offset = offset
        self.capacity = capacity
        self._held: OrderedDict[Key, SourceWindow] = OrderedDict()
        self._age = 0
        self._opened: dict[Key, int] = {}
        self._own: set[Key] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def branch(self) -> Windows:
        """Make a state that changes by itself; windows are copied when they are first opened."""
        twin = Windows(self.offset, self.capacity)
        twin._held, twin._opened = self._held.copy(), self._opened.copy()
        twin._age = self._age
        return twin

    def open(self, key: Key, places: int) -> SourceWindow:
        """The window of a source, to be changed; a new one for a source that is not known.

        Parameters
        ----------
        places:
            Codes per sample; a window of inputs of another shape begins anew.
        """
        window = self._held.get(key)
        while window is None and len(self._held) >= self.capacity:
            self._evict()
        if window is None or window.places != places:
            window = SourceWindow(places)
        elif key not in self._own:
            window = window.copy()
        self._held[key] = window
        self._held.move_to_end(key)
        self._opened[key] = self._age
        self._own.add(key)
        return window

    def _evict(self) -> None:
        due = {key: self._opened[key] + window.worth for key, window in self._held.items()}
        gone = min(due, key=due.__getitem__)
        self._age = due[gone]
        del self._held[gone], self._opened[gone]
        self._own.discard(gone)

    def dump(self) -> bytes:
        """All windows, least recently used first, behind a line that lists them.

        Behind them are their ages, where workers of versions that know none do not look.
        """
        written = [(key, window.snapshot()) for key, window in self._held.items()]
        line = json.dumps([[*key, len(raw)] for key, raw in written]).encode()
        ages = json.dumps([self._opened[key] - self._age for key in self._held]).encode()
        return b"".join((line, b"\n", *(raw for _, raw in written), ages))

    @classmethod
    def load(cls, offset: int, dumped: bytes, capacity: int = SOURCES) -> Windows:
        """Read what `dump` wrote.

        Raises
        ------
        DigestMismatch
            If it is none.
        """
        line, _, body = dumped.partition(b"\n")
        state, start = cls(offset, capacity), 0
        try:
            for model, source, size in json.loads(line):
                key = str(model), str(source)
                state._held[key] = SourceWindow.restore(body[start : start + size])
                start += size
            # Older versions told no ages.
            ages = json.loads(body[start:]) if body[start:] else [0] * len(state._held)
            state._opened = {k: int(age) for k, age in zip(state._held, ages, strict=True)}
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise DigestMismatch(f"no list of windows: {error}") from error
        return state


def snapshot(partition: int, state: Windows, *, log: UUID, slot: int) -> tuple[list[Out], Out]:
    """Write a state down.

    Parameters
    ----------
    log:
        Identity of the log of ``training.samples``.
    slot:
        0 or 1; not the one of the last snapshot.

    Returns
    -------
    parts, head:
        The head is to be published when all parts are acknowledged; a small state has no parts.
    """
    body = state.dump()
    name = f"screen/{partition}"
    cuts = [] if len(body) <= PART_BYTES else range(0, len(body), PART_BYTES)
    parts = [
        Out("state", body[start : start + PART_BYTES], f"{name}/{slot}/{number}".encode())
        for number, start in enumerate(cuts)
    ]
    head = {
        "log": str(log), "offset": state.offset, "slot": slot, "parts": len(parts),
        "digest": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip
    value = json.dumps(head).encode() + b"\n" + (b"" if parts else body)
    return parts, Out("state", value, name.encode())


def restore(
    partition: int, found: Mapping[bytes, bytes], *, log: UUID, capacity: int = SOURCES
) -> tuple[Windows, int] | None:
    """Take up the newest snapshot of a partition.

    Parameters
    ----------
    found:
        The newest value of each key on ``state`` that begins with ``screen/``.

    Returns
    -------
    state, slot:
        None if there is none of this log.

    Raises
    ------
    DigestMismatch
        If it is not, byte for byte, what was written.
    """
    name = f"screen/{partition}"
    if (value := found.get(name.encode())) is None:
        return None
    line, _, body = value.partition(b"\n")
    try:
        head: dict[str, Any] = json.loads(line)
        if head["log"] != str(log):
            return None  # of a topic that was made anew
        offset, slot, digest = head["offset"], head["slot"], str(head["digest"])
        if type(offset) is not int or not 0 <= offset < 1 << 63 or slot not in (0, 1):
            raise ValueError(f"it is of no offset or slot: {line[:200]!r}")  # noqa: TRY301
        if head["parts"]:
            keys = (f"{name}/{slot}/{number}" for number in range(head["parts"]))
            body = b"".join(found[key.encode()] for key in keys)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DigestMismatch(f"no snapshot of training.samples/{partition}: {error!r}") from error
    if hashlib.sha256(body).hexdigest() != digest:
        raise DigestMismatch(f"the snapshot of training.samples/{partition} has other bytes")
    return Windows.load(offset, body, capacity), slot
