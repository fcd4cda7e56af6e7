"""One Apache Kafka broker on a folder: it may be killed, stopped and started again where it was."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

from workers.embedded import HOST, free_port, with_parent

BROKER = "Apache Kafka 4.4"
START_SECONDS = 60.0
_API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 7, -1)


class Apache:
    """The broker; a context manager.

    Parameters
    ----------
    home:
        Where the program ``kafka`` is.
    folder:
        Its data; kept over restarts.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._folder = folder
        self._ports = (free_port(), free_port())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self._ports[0]}"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self.resume()
            self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [str(self._home / "kafka"), str(self._folder), *map(str, self._ports)]
        with (self._folder / "out").open("ab") as log:
            self._process = subprocess.Popen(
                with_parent(command), stdout=log, stderr=log,
                env=os.environ | {"KAFKA_HEAP": "256m"},
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self._folder / "out").read_text()[-4000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: the death of the process, not of the power."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def answers(self) -> bool:
        """Whether it answers a request (ApiVersions)."""
        try:
            with socket.create_connection((HOST, self._ports[0]), timeout=1.0) as connection:
                connection.sendall(_API_VERSIONS)
                answer = connection.recv(8)
        except OSError:
            return False
        return len(answer) == 8 and struct.unpack(">ii", answer)[1] == 7

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
