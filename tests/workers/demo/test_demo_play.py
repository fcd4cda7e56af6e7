"""A run of the demo beside another one."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from nnsec.errors import ConfigError
from nnsec.settings import Settings
from workers import embedded
from workers.demo import stage
from workers.demo.material import Material
from workers.demo.play import THREADS, Demo, _screen


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


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    """As where the demo's place is taken by something else, or is not to be written to."""
    (tmp_path / ".nnsec").touch()
    with pytest.raises(ConfigError, match="work in a folder that you can write to"):
        stage.clear(tmp_path / ".nnsec" / "demo")


def test_what_follows_the_last_picture_begins_on_a_line_of_its_own() -> None:
    """Also in a file or a pipe, where only the last picture is drawn."""
    out = io.StringIO()
    with _screen(Console(file=out)) as screen:
        screen.update("the picture", refresh=True)
    assert out.getvalue() == "the picture\n"
