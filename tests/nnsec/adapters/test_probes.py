"""Probes: alive at once, ready when nothing is in the way, and found by a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from nnsec.adapters.probes import Probes
from nnsec.errors import ConfigError
from nnsec.settings import Http, Settings


async def _get(address: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as found:
        return found.status, await found.text()


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def test_ready_names_what_is_in_the_way(tmp_path: Path) -> None:
    """A live process is ready once it has no problem left; each is named on a line."""
    problems = ["the broker has not answered", "model 'digits' has no statement"]
    async with Probes(Settings(), "view", lambda: problems, folder=tmp_path) as probes:
        assert await _get(probes.address, "/livez") == (200, "ok\n")
        assert await _get(probes.address, "/readyz") == (503, "\n".join([*problems, ""]))
        problems.clear()
        assert await _get(probes.address, "/readyz") == (200, "ready\n")


async def test_metrics_are_those_of_the_registry(tmp_path: Path) -> None:
    """Prometheus can read them."""
    registry = CollectorRegistry()
    Counter("nnsec_tried", "Tries.", registry=registry).inc(3)
    async with Probes(Settings(), "view", tuple, folder=tmp_path, registry=registry) as probes:
        status, text = await _get(probes.address, "/metrics")
    assert status == 200
    assert "nnsec_tried_total 3.0" in text


async def test_the_address_is_written_and_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With port 0 nobody knows it otherwise."""
    folder = tmp_path / "run"
    with caplog.at_level("INFO", "nnsec.adapters.probes"):
        async with Probes(Settings(), "view", tuple, folder=folder) as probes:
            (file,) = folder.iterdir()
            said = json.loads(file.read_text())
    assert file.name == f"view-{os.getpid()}.json"
    assert said == {"role": "view", "pid": os.getpid(), "address": probes.address}
    assert probes.address in caplog.messages[0]
    assert _names(folder) == []


async def test_an_address_of_version_6_can_be_opened(tmp_path: Path) -> None:
    """It is written in brackets, as in a URL."""
    settings = Settings(http=Http(listen="[::1]:0"))
    try:
        async with Probes(settings, "view", tuple, folder=tmp_path) as probes:
            assert (await _get(probes.address, "/livez"))[0] == 200
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


@pytest.mark.parametrize(
    "listen", ["127.0.0.1", "127.0.0.1:port", "192.0.2.1:0", "127.0.0.1:99999"]
)
async def test_an_address_that_cannot_be_had(listen: str, tmp_path: Path) -> None:
    """The error names the setting, and nothing is left behind."""
    with pytest.raises(ConfigError, match="listen"):
        async with Probes(Settings(http=Http(listen=listen)), "view", tuple, folder=tmp_path):
            pass
    assert _names(tmp_path) == []


@pytest.mark.parametrize("listen", ["0", ":0", "[]:0"])
async def test_an_address_without_a_host_is_refused(listen: str, tmp_path: Path) -> None:
    """A port alone would open the probes to all interfaces."""
    with pytest.raises(ConfigError, match="names no host"):
        async with Probes(Settings(http=Http(listen=listen)), "view", tuple, folder=tmp_path):
            pass


async def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """It is not the address that is wrong."""
    (tmp_path / "run").write_text("a file, as root may write to any folder")
    with pytest.raises(ConfigError, match=r"run/view-.* cannot be written") as refused:
        async with Probes(Settings(), "view", tuple, folder=tmp_path / "run"):
            pass
    assert "listen" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)
