"""``python -m streams.device_process WORK ORDERS``: runs models, until whoever started it ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from nnsec.errors import ConfigError, NNSecError, TransientError
from nnsec.settings import parse
from streams.checkpoints import Checkpoints
from streams.device_messages import figures, pack, unpack

THREADS = "OMP_NUM_THREADS"
"""Of torch, where this is set; else one."""
_sick = threading.Event()
"""Set when inputs fail that passed before: a new process may do better."""


def main() -> None:
    """Answer on two lines, given as file descriptors: batches on one, checkpoints on the other."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of the lines is the end
    if THREADS not in os.environ:
        torch.set_num_threads(1)  # the detectors' many small steps gain little from a second one
    gc.freeze()  # what was imported stays: walking through it held inputs up by 200 ms at a time
    work, orders = (Connection(int(number)) for number in sys.argv[1:])
    try:
        checkpoints = Held(orders.recv_bytes())
        threading.Thread(target=_load, args=(orders, checkpoints), daemon=True).start()
        while True:
            work.send_bytes(_answer(_score, checkpoints, work.recv_bytes()))
            if _sick.is_set():
                os._exit(1)
    except (EOFError, OSError):
        os._exit(0)  # the other thread may be in the middle of a checkpoint


class Held:
    """The checkpoints, made at the first request that they can be made for.

    Parameters
    ----------
    tables:
        JSON of the tables of the configuration.
    """

    def __init__(self, tables: bytes) -> None:
        self._tables = tables
        self._lock = threading.Lock()
        self._found: Checkpoints | None = None

    def __call__(self) -> Checkpoints:
        """Make them, or name them.

        Raises
        ------
        TransientError
            If the registry or a key cannot be used: whoever asked waits, and no input is to blame.
        """
        with self._lock:
            if self._found is None:
                try:
                    self._found = Checkpoints(parse(json.loads(self._tables)))
                except ConfigError as error:
                    raise TransientError(str(error)) from error
            return self._found


def _load(orders: Connection, checkpoints: Held) -> None:
    try:
        while True:
            orders.send_bytes(_answer(_hold, checkpoints, orders.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)


def _answer(work: Any, checkpoints: Held, request: bytes) -> bytes:
    try:
        found: bytes = work(checkpoints(), *unpack(request))
    except Exception as error:  # noqa: BLE001 - whatever a model raises, whoever asked must hear it
        ours = isinstance(error, NNSecError)
        return pack({"error": type(error).__name__, "message": str(error), "ours": ours}, {})
    return found


def _hold(checkpoints: Checkpoints, head: dict[str, Any], _: Any) -> bytes:
    for model, kept in head["keep"].items():
        checkpoints.retain(model, {(version, digest) for version, digest in kept})
    checkpoints.get(head["model"], head["version"], head["digest"])
    return pack({}, {})


def _score(checkpoints: Checkpoints, head: dict[str, Any], arrays: Any) -> bytes:
    try:
        found = checkpoints.get(head["model"], head["version"], head["digest"])
    except NNSecError as error:  # it served before, so no input is to blame that it is refused now
        about = f"{head['model']}/{head['version']}"
        raise TransientError(f"{about} waits: {type(error).__name__}: {error}") from error
    if "x" not in arrays:
        found.check_golden()  # before any input may be blamed for what goes wrong here
        return pack({}, {})
    try:
        return pack({}, figures(found.suite.score(np.array(arrays["x"]))))
    except Exception:
        try:
            found.check_golden()
        except Exception:  # noqa: BLE001 - as after an error that a GPU does not recover from
            _sick.set()
        raise


if __name__ == "__main__":
    main()
