"""The generated pages are those that the code would generate now."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers import reference

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["cli.md", "configuration.md", "topics.md"])
def test_pages_are_up_to_date(name: str) -> None:
    """A command, key or topic that changed is in the docs; `make docs` writes them."""
    assert (DOCS / name).read_text() == reference.pages()[name], "run `make docs`"


def test_pages_are_written(tmp_path: Path) -> None:
    """`make docs` writes every page."""
    reference.main(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == set(reference.pages())


def test_every_command_and_option_says_what_it_does() -> None:
    """No row of the command line's page is without words."""
    rows = [line for line in reference.cli().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
    heads = reference.cli().split("\n## ")[1:]
    assert [head.splitlines()[0] for head in heads if not head.splitlines()[2].strip()] == []
