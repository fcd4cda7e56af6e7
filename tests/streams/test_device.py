"""The process that runs models: the same figures, errors by name, and a new one after a death."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nnsec.errors import ConfigError, DigestMismatch, TransientError
from nnsec.settings import Settings, parse
from nnsec.suite import Scored
from streams.checkpoints import Checkpoints
from streams.device import RESTARTS, Device, ModelFailed, _raised, pack, unpack
from tests.conftest import MadeCheckpoint


@pytest.fixture(scope="module")
def configured(checkpoint: MadeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return checkpoint.configure(parse({}), tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def device(configured: Settings) -> Iterator[Device]:
    found = Device(configured)
    yield found
    found.close()


def same(one: Scored, two: Scored) -> bool:
    names = [field.name for field in dataclasses.fields(Scored)]
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names)


def test_a_message_comes_out_as_it_went_in() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "b": np.zeros((0, 4)),
        "c": np.ones(3) > 0,
    }
    head, found = unpack(pack({"model": "über\n"}, arrays))
    assert head == {"model": "über\n"}
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert [array.dtype for array in found.values()] == [array.dtype for array in arrays.values()]


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_it_gives_the_bits_that_this_process_gives(
    configured: Settings, device: Device, checkpoint: MadeCheckpoint, rows: int
) -> None:
    here = Checkpoints(configured)
    there = Checkpoints(configured, device)
    there.prepare("digits", 1, checkpoint.digest)
    x = checkpoint.x[:rows]
    found = there.score("digits", 1, checkpoint.digest, x)
    assert same(found, here.score("digits", 1, checkpoint.digest, x))
    assert device.pid != os.getpid()


def test_a_checkpoint_that_was_not_announced_is_loaded_when_it_is_asked_for(
    configured: Settings, checkpoint: MadeCheckpoint
) -> None:
    device = Device(configured)
    try:
        assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:2]).score) == 2
    finally:
        device.close()


def test_errors_keep_their_names(device: Device, checkpoint: MadeCheckpoint) -> None:
    with pytest.raises(DigestMismatch):
        device.load("digits", 1, "0" * 64, {})
    with pytest.raises(ConfigError, match="not configured"):
        device.score("letters", 1, checkpoint.digest, checkpoint.x[:1])
    with pytest.raises(ModelFailed, match="RuntimeError"):
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1, 0, :3, :3])
    assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:1]).score) == 1


def test_a_models_error_with_a_name_of_ours_is_the_models() -> None:
    """Caught, for example: a model's own TransientError, for which a batch would wait for ever."""
    assert type(_raised("TransientError", "x", ours=False)) is ModelFailed
    assert type(_raised("TransientError", "x", ours=True)) is TransientError


def test_after_a_death_the_next_batch_has_a_new_process(
    device: Device, checkpoint: MadeCheckpoint
) -> None:
    device.load("digits", 1, checkpoint.digest, {})
    old, before = device.pid, RESTARTS._value.get()
    assert old is not None
    os.kill(old, signal.SIGSTOP)  # so that the batch is surely with it when it dies
    end = threading.Timer(0.3, os.kill, (old, signal.SIGKILL))
    end.start()
    with pytest.raises(ModelFailed, match="status -9 while it scored 3 inputs"):
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:3])
    end.join()
    assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:3]).score) == 3
    assert device.pid != old
    assert RESTARTS._value.get() == before + 1


def test_one_that_cannot_start_is_waited_for_and_blames_no_input(
    configured: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caught, for example: a machine out of processes whose good inputs become dead letters."""
    device = Device(configured)
    device.close()
    with pytest.raises(TransientError):
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TransientError, match="nowhere"):
        Device(configured).score("digits", 1, checkpoint.digest, checkpoint.x[:1])


def test_what_it_cannot_use_is_answered(
    configured: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """Caught, for example: a key that is gone when it starts again, and a traceback for an answer.

    It goes on when the key is back.
    """
    key, named = tmp_path / "release.pub", configured.trust.release_keys[0]
    trust = configured.trust.model_copy(update={"release_keys": (str(key),)})
    device = Device(configured.model_copy(update={"trust": trust}))
    pid = device.pid
    try:
        with pytest.raises(TransientError, match=r"release\.pub"):
            device.load("digits", 1, checkpoint.digest, {})
        with pytest.raises(TransientError, match=r"release\.pub"):
            device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        shutil.copy(named, key)
        assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:1]).score) == 1
        assert device.pid == pid
    finally:
        device.close()


def test_it_ends_with_whoever_started_it(configured: Settings, tmp_path: Path) -> None:
    """Also when that is killed."""
    program = (
        "import sys, time; from nnsec.settings import parse; from streams.device import Device\n"
        "print(Device(parse({})).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and _runs(pid):
        assert time.monotonic() < deadline, "the process outlived whoever started it"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
