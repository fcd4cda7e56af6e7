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
from typing import Any

import numpy as np
import pytest

from nnsec.errors import ConfigError, DigestMismatch, TransientError
from nnsec.settings import Settings, parse
from nnsec.suite import Scored
from streams import device_process
from streams.checkpoints import Checkpoints
from streams.device import RESTARTS, Device, ModelFailed
from streams.device_child import _raised
from streams.device_messages import pack, unpack
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


def large(checkpoint: MadeCheckpoint) -> np.ndarray[Any, Any]:
    """8000 inputs, 512 kB."""
    return np.tile(checkpoint.x[:1], (8000, 1, 1, 1))


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
        device.load("letters", 1, checkpoint.digest, {})
    with pytest.raises(ModelFailed, match="RuntimeError"):
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1, 0, :3, :3])
    assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:1]).score) == 1


def test_a_checkpoint_that_is_refused_when_inputs_are_there_blames_none(
    configured: Settings, checkpoint: MadeCheckpoint, tmp_path: Path
) -> None:
    """Caught, for example: a new process, damage in the registry, and all inputs dead letters."""
    shutil.copytree(configured.registry.url, tmp_path / "registry")
    (weights,) = (tmp_path / "registry").rglob("weights.safetensors")
    registry = configured.registry.model_copy(update={"url": str(tmp_path / "registry")})
    device = Device(configured.model_copy(update={"registry": registry}))
    sound = weights.read_bytes()
    try:
        weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(TransientError, match="digits/1 waits: DigestMismatch: weights"):
            device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        with pytest.raises(TransientError, match="letters/1 waits: ConfigError: model"):
            device.score("letters", 1, checkpoint.digest, checkpoint.x[:1])
        (said,) = device.problems()
        assert said.startswith("letters/1 waits")
        weights.write_bytes(sound)
        assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:1]).score) == 1
        assert device.problems() == ()
    finally:
        device.close()


def test_a_models_error_with_a_name_of_ours_is_the_models() -> None:
    """Caught, for example: a model's own TransientError, for which a batch would wait for ever."""
    assert type(_raised("TransientError", "x", ours=False)) is ModelFailed
    assert type(_raised("TransientError", "x", ours=True)) is TransientError


def test_after_a_death_the_next_batch_has_a_new_process(
    device: Device, checkpoint: MadeCheckpoint
) -> None:
    device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
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


def test_one_that_ends_at_once_blames_no_input(
    configured: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caught, for example: no memory for a new process, and every good input a dead letter."""
    device = Device(configured)
    try:
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        assert device.pid is not None
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            os.kill(device.pid, signal.SIGKILL)
            with pytest.raises(ModelFailed):  # it died with the input, so that may be to blame
                device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
            for _ in range(3):
                with pytest.raises(TransientError, match="while it loaded a checkpoint"):
                    device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:1]).score) == 1
    finally:
        device.close()


def test_one_that_dies_while_it_loads_is_waited_for(
    configured: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Else the worker would refuse the checkpoint for good."""
    device = Device(configured)
    assert device.pid is not None
    os.kill(device.pid, signal.SIGSTOP)
    end = threading.Timer(0.3, os.kill, (device.pid, signal.SIGKILL))
    end.start()
    try:
        with pytest.raises(TransientError, match="status -9 while it loaded a checkpoint"):
            device.load("digits", 1, checkpoint.digest, {})
    finally:
        end.join()
        device.close()


def test_one_that_does_not_answer_is_ended(
    configured: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs are to blame, as far as one can tell; meanwhile it is said that it is silent."""
    monkeypatch.setattr("streams.device.PATIENCE", 1.5)
    device = Device(configured)
    try:
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        old = device.pid
        assert old is not None
        assert device.problems() == ()
        os.kill(old, signal.SIGSTOP)
        said: list[tuple[str, ...]] = []
        look = threading.Timer(1.3, lambda: said.append(device.problems()))
        look.start()
        with pytest.raises(ModelFailed, match=r"did not answer within 2 s while it scored 1 inp"):
            device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        look.join()
        assert said == [("the process that runs models has not answered for 1 s",)]
        assert not Path(f"/proc/{old}").exists()
        assert device.problems() == ()
        assert len(device.score("digits", 1, checkpoint.digest, checkpoint.x[:1]).score) == 1
    finally:
        device.close()


def test_one_that_does_not_read_is_ended(
    configured: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch larger than what the system holds for it is not sent before the process reads."""
    device = Device(configured)
    rescue = threading.Timer(20, device.close)
    try:
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        monkeypatch.setattr("streams.device.PATIENCE", 1.0)
        monkeypatch.setattr("streams.device.EACH", 0.0)
        assert device.pid is not None
        os.kill(device.pid, signal.SIGSTOP)
        rescue.start()
        with pytest.raises(ModelFailed, match="did not answer within 1 s while it scored 8000 inp"):
            device.score("digits", 1, checkpoint.digest, large(checkpoint))
        assert rescue.is_alive()
    finally:
        rescue.cancel()
        device.close()


def test_one_that_answers_in_part_is_ended(
    configured: Settings,
    checkpoint: MadeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Also where a process of its own, which outlives it, holds the other end."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys, time\n"
        "lines = [int(number) for number in sys.argv[3:]]\n"
        "os.write(lines[0], bytes([0, 0, 0, 100]) + b'part')\n"
        "subprocess.Popen(['sleep', '20'], pass_fds=lines)\n"
        "time.sleep(60)\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr("streams.device.LOADING", 3.0)
    with monkeypatch.context() as partial:
        partial.setattr(sys, "executable", str(program))
        device = Device(configured)
    began = time.monotonic()
    try:
        with pytest.raises(TransientError, match="did not answer within 3 s while it loaded"):
            device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        assert time.monotonic() - began < 15
    finally:
        device.close()


def test_a_question_goes_to_the_process_that_was_looked_at(
    configured: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new one's late answer stays behind, and each batch has the figures of the last."""
    device, x, key = Device(configured), checkpoint.x, ("digits", 1, checkpoint.digest)
    here = Checkpoints(configured)

    def replaced(*message: Any) -> bytes:
        """Between the look at the process and the question to it another takes its place."""
        monkeypatch.setattr("streams.device.pack", pack)
        assert device.pid is not None
        os.kill(device.pid, signal.SIGKILL)
        time.sleep(0.5)
        device.load(*key, {})
        os.kill(device.pid, signal.SIGSTOP)
        return pack(*message)

    try:
        device.score(*key, x[:1])
        monkeypatch.setattr("streams.device.pack", replaced)
        monkeypatch.setattr("streams.device.PATIENCE", 1.0)
        with pytest.raises(ModelFailed, match="status -9 while it scored 5 inputs"):
            device.score(*key, x[:5])
        os.kill(device.pid or 0, signal.SIGCONT)
        monkeypatch.setattr("streams.device.PATIENCE", 30.0)
        for start in (5, 10):
            batch = x[start : start + 5]
            assert same(device.score(*key, batch), here.score(*key, batch))
    finally:
        device.close()


@pytest.mark.parametrize("sound", [True, False])
def test_one_whose_golden_inputs_fail_too_makes_room(
    monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    """As after an error that a GPU does not recover from; the inputs are asked again elsewhere."""
    monkeypatch.setattr(device_process, "_sick", threading.Event())

    class Model:
        suite = property(lambda self: self)

        def get(self, *_: object) -> Model:
            return self

        def score(self, x: np.ndarray[Any, Any]) -> Scored:
            raise ValueError(f"{len(x)} inputs")

        def check_golden(self) -> None:
            if not sound:
                raise RuntimeError("CUDA error")

    head = {"model": "m", "version": 1, "digest": "d"}
    request = pack(head, {"x": np.zeros((3, 2))})
    answer = device_process._answer(device_process._score, lambda: Model(), request)
    assert unpack(answer)[0]["message"] == "3 inputs"
    assert device_process._sick.is_set() is not sound


@pytest.mark.parametrize("rows", [1, 8000])
def test_closing_does_not_wait_for_an_answer(
    configured: Settings, checkpoint: MadeCheckpoint, rows: int
) -> None:
    """Else a model that hangs keeps the worker from ending; of 8000 rows not all are sent yet."""
    device = Device(configured)
    checkpoints = Checkpoints(configured, device)
    device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
    assert device.pid is not None
    os.kill(device.pid, signal.SIGSTOP)
    work = checkpoints.executor.submit(
        checkpoints.score, "digits", 1, checkpoint.digest, large(checkpoint)[:rows]
    )
    assert device._child is not None
    while not device._child.work.waits()[0]:
        time.sleep(0.01)
    began = time.monotonic()
    checkpoints.close()
    device.close()
    with pytest.raises(ModelFailed, match="status -9"):
        work.result(timeout=10)
    assert time.monotonic() - began < 10


def test_it_inherits_nothing_of_nnsec(
    configured: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords can be in the environment, and it runs a model's code."""
    monkeypatch.setenv("NNSEC_SASL_PASSWORD", "hunter2")
    device = Device(configured)
    try:
        device.score("digits", 1, checkpoint.digest, checkpoint.x[:1])
        environment = Path(f"/proc/{device.pid}/environ").read_bytes()
    finally:
        device.close()
    assert b"PATH=" in environment
    assert b"NNSEC_" not in environment


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
