"""Real processes of ours, started within a second, to be killed, stopped and let go on.

A process is `nnsec …` as a user starts it, but forked from one that has imported everything. It is
a process of its own to the kernel and to the broker, and dies with the test whatever happens.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

from nnsec.settings import Settings
from tests.fault.history import History
from workers.demo.stage import to_toml

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["__main__", "tests.fault.plant", "tests.fault.warm"])
_PR_SET_PDEATHSIG = 1


class Worker:
    """One process.

    Parameters
    ----------
    name:
        By which it stands in the history.
    """

    def __init__(self, name: str, process: Any, log: Path, history: History) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._history = history

    @property
    def pid(self) -> int:
        """For signals."""
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    def kill(self) -> None:
        """End it as the kernel would, in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()
        self._history.fault("kill", self.name)  # only now nothing more can come of it

    def join(self) -> None:
        """Wait until it has ended."""
        self._process.join(10.0)

    def died(self, seconds: float) -> bool:
        """Wait until it has ended by itself; tell whether it was SIGKILL."""
        self._process.join(seconds)
        killed = bool(self._process.exitcode == -signal.SIGKILL)
        if killed:
            self._history.fault("kill", self.name)
        return killed

    def pause(self) -> None:
        """Let it stand still (SIGSTOP)."""
        self._history.fault("pause", self.name)
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._history.fault("resume", self.name)
        os.kill(self.pid, signal.SIGCONT)

    def stopped(self) -> bool:
        """Whether it stands still."""
        return state(self.pid) == "T"

    def end(self, seconds: float = 40.0) -> int | None:
        """Ask it to end in good order; returns its exit status, None if it did not."""
        self._history.fault("end", self.name)
        os.kill(self.pid, signal.SIGTERM)
        self._process.join(seconds)
        status: int | None = self._process.exitcode
        return status

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Plant:
    """A folder with a configuration, and the processes that were started in it.

    Parameters
    ----------
    history:
        Where starts and faults are noted.
    """

    def __init__(self, settings: Settings, folder: Path, history: History) -> None:
        self.settings = settings
        self.folder = folder
        self.history = history
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        tables = self.settings.model_dump(mode="json", exclude_defaults=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "nnsec.toml").write_text(to_toml(tables) + "\n", "utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            if worker.alive:
                os.kill(worker.pid, signal.SIGKILL)
            worker.join()

    def start(self, *command: str, trap: str = "") -> Worker:
        """Start one command of ``nnsec``.

        Parameters
        ----------
        trap:
            ``module:function:argument`` that is called in the process before the command is.
        """
        name = f"{'-'.join(command)}-{len(self._workers)}"
        log = self.folder / f"{name}.log"
        process = _CONTEXT.Process(target=_run, args=(command, str(self.folder), str(log), trap))
        process.start()
        self.history.fault("start", name)
        self._workers.append(Worker(name, process, log, self.history))
        return self._workers[-1]

    def logs(self) -> str:
        """What all processes wrote, the newest last."""
        return "\n".join(
            f"--- {worker.log.name}\n{worker.log.read_text()[-4000:]}"
            for worker in self._workers[-4:]
            if worker.log.exists()
        )


def state(pid: int) -> str:
    """The kernel's letter for what a process does; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _run(command: tuple[str, ...], folder: str, log: str, trap: str) -> None:
    """Be ``nnsec command``: the body of the child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)  # Ctrl-C is the test's alone
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    if trap:
        module, function, argument = trap.split(":")
        getattr(importlib.import_module(module), function)(argument)
    sys.argv = ["nnsec", "--config", "nnsec.toml", *command]
    from workers.cli import main

    main()
