"""`nnsec up`, run as a user runs it: in an empty folder, until Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
[models.digits]
architecture = "nnsec.models:small_cnn"
input = { shape = [1, 8, 8], dtype = "uint8", range = [0, 16] }
device = "cpu"
[kafka]
drain_seconds = 10
partitions = { inputs = 2, control = 1 }
"""


def environ() -> dict[str, str]:
    mine = {name: text for name, text in os.environ.items() if not name.startswith("NNSEC_")}
    return mine | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@contextmanager
def up(folder: Path, command: str = "up") -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    output = folder.parent / f"{folder.name}.out"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", command], cwd=folder, stdout=out,
            stderr=subprocess.STDOUT, env=environ(), start_new_session=True,
        )  # fmt: skip
    try:
        yield process, output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(output: Path, pattern: str, process: subprocess.Popen[bytes], seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if re.search(pattern, text := output.read_text()):
            return text
        assert process.poll() is None, text
        time.sleep(0.1)
    pytest.fail(f"no {pattern!r} within {seconds:g} s: {output.read_text()}")


def descendants(pid: int) -> set[int]:
    """Processes below this one, as the kernel has them."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(stat.parent.name)] = int(fields[1])
    found, waiting = set(), {pid}
    while waiting:
        waiting = {child for child, parent in parents.items() if parent in waiting} - found
        found |= waiting
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.cli", *words], cwd=folder, env=environ(), text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_it_starts_waits_and_leaves_nothing(tmp_path: Path) -> None:
    """It names the model that waits, serves commands beside it, and ends without a trace."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "nnsec.toml").write_text(CONFIG)
    with up(folder) as (process, output):
        text = wait_for(output, r"stream +.*digits.*checkpoint", process, 60)
        wait_for(output, r"view +ready", process, 60)
        wait_for(output, r"remediation +ready", process, 60)
        kafka = re.search(r"Kafka +127\.0\.0\.1:(\d+)", text)
        assert kafka
        services = json.loads((folder / ".nnsec/run/services.json").read_text())
        assert services["pid"] == process.pid
        assert services["kafka"].endswith(kafka.group(1))

        found = {
            one["about"].split()[0]: one
            for one in json.loads(run(folder, "doctor", "--json").stdout)
        }
        assert found["broker"]["status"] == found["redis"]["status"] == "ok"
        assert found["view"]["status"] == "ok"
        assert found["models"]["status"] == "fail"
        second = run(folder, "up")
        assert second.returncode == 2
        assert f"process {process.pid} keeps services running" in second.stderr

        children = descendants(process.pid)
        assert len(children) >= 5
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, output.read_text()
    assert [pid for pid in children if alive(pid)] == []
    assert sorted(path.name for path in folder.iterdir()) == [".nnsec", "nnsec.toml"]
    left = {path.name for path in (folder / ".nnsec").rglob("*") if path.is_file()}
    assert left == {"stream.log", "view.log", "remediation.log"}
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(kafka.group(1))), timeout=1)


def test_a_process_that_ends_ends_all(tmp_path: Path) -> None:
    """Killed from outside, one process takes the others with it, and the status is 1."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "nnsec.toml").write_text(CONFIG)
    with up(folder) as (process, output):
        wait_for(output, r"view +ready", process, 60)
        (file,) = (folder / ".nnsec/run").glob("view-*.json")
        children = descendants(process.pid)
        os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)
        assert process.wait(30) == 1
    assert "view ended with status -9" in output.read_text()
    assert [pid for pid in children if alive(pid)] == []


@pytest.mark.parametrize("command", ["up", "demo"])
def test_told_to_end_while_it_starts_it_leaves_nothing(command: str, tmp_path: Path) -> None:
    """SIGTERM before anything is ready stops what was started, as Ctrl-C does."""
    folder = tmp_path / "project"
    folder.mkdir()
    with up(folder, command) as (process, _):
        deadline = time.monotonic() + 60
        while not list(folder.glob(".nnsec/broker-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        children = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(40)
    assert [pid for pid in children if alive(pid)] == []
    assert list(folder.glob(".nnsec/*-*")) == []


def test_a_demo_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM while the demo plays ends its processes and services, as Ctrl-C does."""
    folder = tmp_path / "project"
    folder.mkdir()
    with up(folder, "demo") as (process, output):
        wait_for(output, "workers get ready", process, 120)
        children = descendants(process.pid)
        assert len(children) >= 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 130
    assert [pid for pid in children if alive(pid)] == []
    assert list(folder.glob(".nnsec/*-*")) == []
    assert not (folder / ".nnsec/run/services.json").exists()
    assert "Traceback" not in output.read_text()


def test_a_wrong_model_is_told_with_the_last_lines_of_its_log(tmp_path: Path) -> None:
    """A configuration that a process refuses is shown where the user looks."""
    (tmp_path / "nnsec.toml").write_text('[trust]\nrelease_keys = ["gone.pub"]\n' + CONFIG)
    with up(tmp_path) as (process, output):
        assert process.wait(60) == 1
    assert "gone.pub" in output.read_text()
    assert "ended with status 2" in output.read_text()
