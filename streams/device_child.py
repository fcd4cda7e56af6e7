"""A process that runs models, and the lines to it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

from numpy.typing import NDArray

from nnsec import errors
from nnsec.errors import NNSecError
from streams.device_messages import unpack

IDLE = (0.0, math.inf)
"""No answer is waited for."""
_GRACE = 5.0
"""Seconds in which the process may end by itself."""

logger = logging.getLogger(__name__)


class ModelFailed(NNSecError):  # noqa: N818 - a published dead-letter class
    """The model or a detector raised, or its process ended, on these inputs."""


class Line:
    """One way to a process, for one question at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: tuple[float, float] | None = None

    def ask(self, request: bytes, seconds: float) -> bytes:
        """Wait for the answer; raises OSError or EOFError if none comes any more.

        It looks at no clock: `Child.look` ends what takes longer than so many seconds.
        """
        self._asked = time.monotonic(), seconds
        try:
            self._connection.send_bytes(request)
            return self._connection.recv_bytes()
        except BaseException:
            self.cut()  # an answer that still came would be taken for that of the next question
            raise
        finally:
            self._asked = None

    def waits(self) -> tuple[float, float]:
        """How long an answer has been waited for, and how long it may be (s); 0 if none is."""
        asked = self._asked
        return IDLE if asked is None else (time.monotonic() - asked[0], asked[1])

    def cut(self) -> None:
        """End it, from any thread: on both sides whoever sends or waits hears of that.

        It is not closed, as its number might then be another's while somebody still waits at it.
        """
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._connection.fileno())) as end,
        ):
            end.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, eq=False)
class Child:
    """A process with the lines to it, so that a question goes to the one that was looked at."""

    process: subprocess.Popen[bytes]
    work: Line
    orders: Line
    proved: set[tuple[str, int, str]] = field(default_factory=set)
    """The checkpoints that it has loaded."""

    def ask(
        self, line: Line, request: bytes, what: str, seconds: float
    ) -> Mapping[str, NDArray[Any]]:
        """Ask, and raise what the answer says; a process that does not answer is ended."""
        began = time.monotonic()
        try:
            answer = line.ask(request, seconds)
        except (OSError, EOFError) as error:
            late = time.monotonic() - began > seconds
            status = _gone(self.process)
            did = f"did not answer within {seconds:g} s" if late else f"ended with status {status}"
            raise ModelFailed(f"the process that runs models {did} while it {what}") from error
        head, arrays = unpack(answer)
        if "error" in head:
            raise _raised(head["error"], head["message"], ours=head["ours"])
        return arrays

    def look(self) -> None:
        """End it if it takes too long to read a question or to answer it."""
        for line in (self.work, self.orders):
            waited, limit = line.waits()
            if waited > limit:
                self.process.kill()
                line.cut()  # a process that it started may hold the other end

    def end(self) -> None:
        """End it; who waits for an answer hears of that."""
        lines = (self.work, self.orders)
        if any(line.waits()[0] for line in lines):
            self.process.kill()  # nobody wants the answer any more, and it may never come
        for line in lines:
            line.cut()
        _ended(self.process)


def begun(tables: bytes) -> Child:
    """Start a process; raises OSError if that fails."""
    (work, its_work), (orders, its_orders) = Pipe(), Pipe()
    numbers = (its_work.fileno(), its_orders.fileno())
    command = [sys.executable, "-m", "streams.device_process", *map(str, numbers)]
    try:
        # In a group of its own: Ctrl-C is for those who read and write, it ends with them.
        process = subprocess.Popen(command, pass_fds=numbers, process_group=0, env=_environment())
    finally:
        its_work.close()
        its_orders.close()
    with contextlib.suppress(OSError):  # it has ended, which whoever asks hears
        orders.send_bytes(tables)
    return Child(process, Line(work), Line(orders))


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
