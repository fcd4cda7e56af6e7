"""A run of the demo beside another one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from nnsec.errors import ConfigError
from nnsec.settings import Settings
from workers import embedded
from workers.demo import stage
from workers.demo.material import Material
from workers.demo.play import THREADS, Demo


def test_a_second_demo_leaves_what_the_first_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused because one runs in this folder, it has removed nothing of that one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(THREADS, "1")
    key = stage.clear() / "release"
    key.write_text("of the first")
    second = Demo(Settings(), Material.load("digits", seed=0), Console(), 0, 0.0, print)
    with ExitStack() as first:
        embedded.resolve(Settings(), first)
        with pytest.raises(ConfigError, match="keeps services running"):
            second.run()
    assert key.read_text() == "of the first"
