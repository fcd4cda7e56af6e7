"""``--json FILE``: the figures of a run that takes minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from nnsec.errors import ConfigError


def writable(file: Path | None) -> Path | None:
    """See before a run of minutes that its figures can be written; a file is made, not emptied."""
    if file is not None:
        try:
            file.open("a").close()
        except OSError as error:
            raise ConfigError(f"--json {file} cannot be written: {error}") from error
    return file


Json = Annotated[
    Path | None,
    typer.Option("--json", callback=writable, help="Write the figures to this file."),
]


def write(file: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures of a run, where that is asked for."""
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
