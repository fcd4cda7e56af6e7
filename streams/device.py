"""The process that runs models for scoring, as those who ask it see it.

Torch lets Python's lock go and takes it back at each of a hundred steps a batch, and each time it
may wait for the event loop or for a consumer's thread. In a process of its own it waits for nobody
(measured: docs/performance.md), and what crashes there takes no consumer with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import fields
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from nnsec import errors
from nnsec.errors import NNSecError, TransientError
from nnsec.settings import Settings
from nnsec.suite import Scored

TABLES = ("registry", "models", "trust")
"""What the process needs of the configuration; it holds no secret of Kafka's."""
_GRACE = 5.0
"""Seconds in which the process may end by itself."""

RESTARTS = Counter("nnsec_device_restarts", "Processes that run models which ended by themselves")

logger = logging.getLogger(__name__)


class ModelFailed(NNSecError):  # noqa: N818 - a published dead-letter class
    """The model or a detector raised, or its process ended, on these inputs."""


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
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._work = _Line()
        self._orders = _Line()
        with contextlib.suppress(TransientError):  # whoever asks later hears of it
            self._start()

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
        try:
            self._ask(self._orders, pack(head, {}), "loaded a checkpoint")
        except ModelFailed as error:
            raise TransientError(str(error)) from error

    def score(self, model: str, version: int, digest: str, x: NDArray[Any]) -> Scored:
        """Score a batch.

        Parameters
        ----------
        x:
            (batch, *shape) in the wire dtype.

        Raises
        ------
        ModelFailed
            If the model or a detector raises, or the process ends.
        TransientError
            If the process cannot be started, or the registry is away.
        """
        head = {"model": model, "version": version, "digest": digest}
        arrays = self._ask(self._work, pack(head, {"x": x}), f"scored {len(x)} inputs")
        return Scored(**arrays)

    def close(self) -> None:
        """End the process."""
        with self._starting:
            self._closed = True
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid if self._process is not None else None

    def _ask(self, line: _Line, request: bytes, what: str) -> Mapping[str, NDArray[Any]]:
        with line.lock:
            process = self._start()
            try:
                answer = line.ask(request)
            except (OSError, EOFError) as error:
                status = _gone(process)
                raise ModelFailed(
                    f"the process that runs models ended with status {status} while it {what}"
                ) from error
        head, arrays = unpack(answer)
        if "error" in head:
            raise _raised(head["error"], head["message"], ours=head["ours"])
        return arrays

    def _start(self) -> subprocess.Popen[bytes]:
        """See that the process runs, and name it: another may take its place at any time.

        Raises
        ------
        TransientError
            If it cannot be started.
        """
        with self._starting:
            if self._closed:
                raise TransientError("the process that runs models was ended")
            if self._process is not None and self._process.poll() is None:
                return self._process
            if self._process is not None:
                RESTARTS.inc()
                self._end()
            (work, its_work), (orders, its_orders) = Pipe(), Pipe()
            numbers = (its_work.fileno(), its_orders.fileno())
            command = [sys.executable, "-m", "streams.device_process", *map(str, numbers)]
            try:
                # In a group of its own: Ctrl-C is for those who read and write, it ends with them.
                self._process = subprocess.Popen(command, pass_fds=numbers, process_group=0)
                orders.send_bytes(self._tables)
            except OSError as error:
                raise TransientError(f"the process that runs models: {error}") from error
            finally:
                its_work.close()
                its_orders.close()
            self._work.connection, self._orders.connection = work, orders
            return self._process

    def _end(self) -> None:
        for line in (self._work, self._orders):
            line.close()
        process, self._process = self._process, None
        if process is not None:
            _ended(process)


class _Line:
    """One way to the process, for one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Connection | None = None

    def ask(self, request: bytes) -> bytes:
        if self.connection is None:
            raise EOFError
        self.connection.send_bytes(request)
        return self.connection.recv_bytes()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _gone(process: subprocess.Popen[bytes]) -> int:
    """The status of a process that does not answer any more."""
    status = _ended(process)
    logger.error("the process that runs models ended with status %s", status)
    return status


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for its end, and end it by force if that does not come; returns its status."""
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _raised(name: str, message: str, *, ours: bool) -> NNSecError:
    """One of our own errors as what it is, any other as the model's, whatever its name."""
    kind = getattr(errors, name, None) if ours else None
    if kind is None:
        return ModelFailed(f"{name}: {message}")
    found: NNSecError = kind(message)
    return found


# --- what goes over: a line of JSON, and the arrays that it names, one after the other ---


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write a message."""
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shapes = {name: (array.dtype.str, array.shape) for name, array in packed.items()}
    line = json.dumps({**head, "arrays": shapes}).encode()
    return b"\n".join([line, b"".join(array.tobytes() for array in packed.values())])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a message; the arrays share its memory and cannot be written to."""
    end = message.index(b"\n")
    head = json.loads(message[:end])
    arrays, place = {}, end + 1
    for name, (dtype, shape) in head.pop("arrays").items():
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(message, dtype, count, place).reshape(shape)
        place += arrays[name].nbytes
    return head, arrays


def figures(scored: Scored) -> dict[str, NDArray[Any]]:
    """The arrays of a batch's figures, by name."""
    return {field.name: getattr(scored, field.name) for field in fields(scored)}
