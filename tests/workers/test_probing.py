"""Processes of this machine are found and asked."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from nnsec.adapters.probes import Probes
from nnsec.settings import Settings
from workers import probing


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"role": "a", "pid": "x"}', "\xff"])
def test_what_is_no_such_file_is_passed_over(content: str | None, tmp_path: Path) -> None:
    """Missing, half written or foreign files are no places."""
    if content is not None:
        (tmp_path / "view-1.json").write_text(content, "latin-1")
    assert probing.place(tmp_path / "view-1.json") is None
    assert probing.places(tmp_path) == []


async def test_a_process_says_what_it_waits_for(tmp_path: Path) -> None:
    """Ready, waiting and silent are told apart."""
    problems: list[str] = ["the broker", "a model"]
    async with aiohttp.ClientSession() as session:
        async with Probes(Settings(), "view", lambda: problems, folder=tmp_path):
            (found,) = probing.places(tmp_path)
            assert found.role == "view"
            assert json.loads(found.file.read_text())["pid"] == found.pid
            assert await probing.state(session, found.address) == "the broker; a model"
            problems.clear()
            assert await probing.state(session, found.address) == probing.READY
        assert await probing.state(session, found.address) == probing.SILENT
