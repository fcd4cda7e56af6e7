"""The page of figures: written from what runs left, without touching what people wrote."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from tests.fault import checker, history, reliability
from tests.fault.reliability import BEGIN, END, FOLDER, Shown, note, write


@pytest.mark.parametrize("module", [checker, history, reliability])
def test_examples_run(module: object) -> None:
    """What docstrings show is what happens."""
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted
    assert not found.failed


def test_the_page_is_written_from_what_runs_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run once, the newest of a kind; words around the figures stay, also the second time."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setenv(FOLDER, str(tmp_path / "runs"))
    for kills, profile in ((3, "short"), (4, "short"), (20, "full")):
        note(Shown(1, profile, "Tansu (embedded)", 7, {"kills": kills, "lost": 0}, 1.5, "t.py::t"))
    for _ in range(2):
        write(tmp_path / "runs", page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("kills 4, lost 0") == text.count("kills 20, lost 0") == 1
    assert "kills 3" not in text
    assert 'seed 7, `.venv/bin/pytest -m "" "t.py::t"`' in text


def test_without_a_folder_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary run only prints its figures and its seed."""
    monkeypatch.delenv(FOLDER, raising=False)
    note(Shown(1, "short", "Tansu", 7, {}, 1.5, "t.py::t"))


def test_the_page_names_every_promise() -> None:
    """Its list and the table of the runs speak of the same promises."""
    text = reliability.PAGE.read_text("utf-8")
    listed = text[text.index("## The promises") : text.index("## What was measured")]
    assert [int(n) for n in re.findall(r"^(\d+)\. ", listed, re.MULTILINE)] == [
        *reliability.PROMISES
    ]
