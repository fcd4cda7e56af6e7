"""The process that runs models for scoring, as those who ask it see it.

Torch lets Python's lock go and takes it back at each of a hundred steps a batch, and each time it
may wait for the event loop or for a consumer's thread. In a process of its own it waits for nobody
(measured: docs/performance.md), and what crashes there takes no consumer with it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from prometheus_client import Counter

from nnsec.errors import TransientError
from nnsec.settings import Settings
from nnsec.suite import Scored
from streams.device_child import IDLE, Child, Line, ModelFailed, begun
from streams.device_messages import pack

TABLES = ("registry", "models", "trust")
"""What the process needs of the configuration."""
PATIENCE = 30.0
EACH = 0.5
"""Seconds in which it must answer, and further ones for each row."""
LOADING = 900.0
"""Seconds in which a checkpoint must be loaded, from wherever the registry is."""
_LOOK = 0.5
"""Seconds between two looks whether an answer takes too long."""

RESTARTS = Counter("nnsec_device_restarts", "Processes that run models which ended by themselves")


class Device:
    """Starts the process, asks it, and starts it again if it ends.

    Safe to use from several threads, but not from the event loop's: each call waits for its answer.
    Loading and scoring do not wait for each other.

    Parameters
    ----------
    settings:
        `[registry]`, `[models]` and `[trust] release_keys` count.
    """

    def __init__(self, settings: Settings) -> None:
        tables = settings.model_dump(mode="json", include=set(TABLES))
        self._tables = json.dumps(tables).encode()
        self._starting = threading.Lock()
        self._scoring = threading.Lock()
        self._loading = threading.Lock()
        self._closed = threading.Event()
        self._child: Child | None = None
        self._waiting: tuple[str, ...] = ()
        """Why the last batch could not be scored yet."""
        with contextlib.suppress(TransientError):  # whoever asks later hears of it
            self._start()
        threading.Thread(target=self._watch, name="device-limit", daemon=True).start()

    def load(self, model: str, version: int, digest: str, keep: Mapping[str, Any]) -> None:
        """Verify a checkpoint and hold it ready.

        Parameters
        ----------
        keep:
            Of each model the (version, digest) that must stay in memory.

        Raises
        ------
        NNSecError
            As `streams.checkpoints.Checkpoints.get`; a `TransientError` too if the process ends.
        """
        kept = {name: sorted(some) for name, some in keep.items()}
        head = {"model": model, "version": version, "digest": digest, "keep": kept}
        with self._loading:
            child = self._start()
            _load(child, child.orders, head)

    def score(self, model: str, version: int, digest: str, x: NDArray[Any]) -> Scored:
        """Score a batch.

        Parameters
        ----------
        x:
            (batch, *shape) in the wire dtype.

        Raises
        ------
        ModelFailed
            If the model or a detector raises, or the process ends or does not answer.
        TransientError
            If the process cannot be started, or ends before it has loaded the checkpoint, or
            refuses that, as after damage in the registry: no input is to blame for any of these.
        """
        key, what = (model, version, digest), f"scored {len(x)} inputs"
        head = {"model": model, "version": version, "digest": digest}
        with self._scoring:
            child = self._start()
            if key not in child.proved:
                try:
                    _load(child, child.work, head)
                except TransientError as error:
                    self._waiting = (str(error),)
                    raise
                child.proved.add(key)
            self._waiting = ()
            message, limit = pack(head, {"x": x}), PATIENCE + EACH * len(x)
            return Scored(**child.ask(child.work, message, what, limit))

    def problems(self) -> tuple[str, ...]:
        """What keeps inputs from being scored: a checkpoint, or an answer that takes very long."""
        child = self._child
        waited, limit = child.work.waits() if child is not None else IDLE
        if waited < limit / 2:
            return self._waiting
        return (f"the process that runs models has not answered for {waited:.0f} s",)

    def close(self) -> None:
        """End the process."""
        self._closed.set()
        with self._starting:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        child = self._child
        return child.process.pid if child is not None else None

    def _start(self) -> Child:
        """See that the process runs, and name it: another may take its place at any time.

        Raises
        ------
        TransientError
            If it cannot be started.
        """
        with self._starting:
            if self._closed.is_set():
                raise TransientError("the process that runs models was ended")
            if self._child is not None and self._child.process.poll() is None:
                return self._child
            if self._child is not None:
                RESTARTS.inc()
                self._end()
            try:
                self._child = begun(self._tables)
            except OSError as error:
                raise TransientError(f"the process that runs models: {error}") from error
            return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK):
            child = self._child
            if child is not None:
                child.look()


def _load(child: Child, line: Line, head: Mapping[str, Any]) -> None:
    try:
        child.ask(line, pack(head, {}), "loaded a checkpoint", LOADING)
    except ModelFailed as error:
        raise TransientError(str(error)) from error


__all__ = ["RESTARTS", "Device", "ModelFailed"]
