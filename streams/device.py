"""The process that runs models for scoring, as those who ask it see it.

Torch lets Python's lock go and takes it back at each of a hundred steps a batch, and each time it
may wait for the event loop or for a consumer's thread. In a process of its own it waits for nobody
(measured: docs/performance.md), and what crashes there takes no consumer with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from numpy.typing import NDArray
from prometheus_client import Counter

from nnsec import errors
from nnsec.errors import NNSecError, TransientError
from nnsec.settings import Settings
from nnsec.suite import Scored
from streams.device_messages import pack, unpack

TABLES = ("registry", "models", "trust")
"""What the process needs of the configuration."""
_GRACE = 5.0
"""Seconds in which the process may end by itself."""
PATIENCE = 30.0
EACH = 0.5
"""Seconds in which it must answer, and further ones for each row."""
LOADING = 900.0
"""Seconds in which a checkpoint must be loaded, from wherever the registry is."""
_LOOK = 0.5
"""Seconds after which whoever waits for an answer looks whether it still comes."""

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
        self._proved: set[tuple[str, int, str]] = set()
        """The checkpoints that this very process has loaded."""
        self._waiting: tuple[str, ...] = ()
        """Why the last batch could not be scored yet."""
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
        with self._orders.lock:
            self._load(self._orders, self._start(), head)

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
        with self._work.lock:
            process = self._start()
            if key not in self._proved:
                try:
                    self._load(self._work, process, head)
                except TransientError as error:
                    self._waiting = (str(error),)
                    raise
                self._proved.add(key)
            self._waiting = ()
            message = pack(head, {"x": x})
            return Scored(**_asked(self._work, process, message, what, PATIENCE + EACH * len(x)))

    def problems(self) -> tuple[str, ...]:
        """What keeps inputs from being scored: a checkpoint, or an answer that takes very long."""
        waited, limit = self._work.waits()
        if waited < limit / 2:
            return self._waiting
        return (f"the process that runs models has not answered for {waited:.0f} s",)

    def close(self) -> None:
        """End the process."""
        with self._starting:
            self._closed = True
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid if self._process is not None else None

    def _load(self, line: _Line, process: subprocess.Popen[bytes], head: Mapping[str, Any]) -> None:
        try:
            _asked(line, process, pack(head, {}), "loaded a checkpoint", LOADING)
        except ModelFailed as error:
            raise TransientError(str(error)) from error

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
                self._process = subprocess.Popen(
                    command, pass_fds=numbers, process_group=0, env=_environment()
                )
                self._proved.clear()
                orders.send_bytes(self._tables)
            except OSError as error:
                raise TransientError(f"the process that runs models: {error}") from error
            finally:
                its_work.close()
                its_orders.close()
            self._work.connection, self._orders.connection = work, orders
            return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        lines = (self._work, self._orders)
        if process is not None and any(line.waits()[0] for line in lines):
            process.kill()  # nobody wants the answer any more, and it may never come
        for line in lines:
            line.close()
        if process is not None:
            _ended(process)


class _Line:
    """One way to the process, for one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Connection | None = None
        self._asked: tuple[float, float] | None = None

    def ask(self, request: bytes, seconds: float) -> bytes:
        """Wait for the answer for so long; raises OSError or EOFError if none comes any more."""
        connection = self.connection
        if connection is None:
            raise EOFError
        self._asked = time.monotonic(), seconds
        try:
            connection.send_bytes(request)
            while not connection.poll(_LOOK):
                if self.waits()[0] > seconds:
                    raise TimeoutError
            return connection.recv_bytes()
        finally:
            self._asked = None

    def waits(self) -> tuple[float, float]:
        """How long an answer has been waited for, and how long it may be (s); 0 if none is."""
        asked = self._asked
        return (0.0, math.inf) if asked is None else (time.monotonic() - asked[0], asked[1])

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _asked(
    line: _Line, process: subprocess.Popen[bytes], request: bytes, what: str, seconds: float
) -> Mapping[str, NDArray[Any]]:
    """Ask, and raise what the answer says; a process that does not answer is ended."""
    try:
        answer = line.ask(request, seconds)
    except TimeoutError as error:
        process.kill()
        _gone(process)
        raise ModelFailed(
            f"the process that runs models did not answer within {seconds:g} s while it {what}"
        ) from error
    except (OSError, EOFError) as error:
        status = _gone(process)
        raise ModelFailed(
            f"the process that runs models ended with status {status} while it {what}"
        ) from error
    head, arrays = unpack(answer)
    if "error" in head:
        raise _raised(head["error"], head["message"], ours=head["ours"])
    return arrays


def _environment() -> dict[str, str]:
    """Without what is of nnsec's own: the process runs a model's code, and needs no secret."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NNSEC_")}


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
