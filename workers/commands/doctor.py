"""``nnsec doctor``: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from nnsec.settings import Settings
from workers.commands.plain import plain_lines

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look at broker, keys, registry, models, groups, kill switch, dead letters and processes.

    Each line says what was seen and, where it is not well, what to do. The exit status is 1 if
    anything failed. Nothing is changed.
    """
    from workers.checkup import examine  # aiohttp, the key library and fsspec

    settings: Settings = context.obj
    logging.disable(logging.ERROR)  # what a client library says of a failure is in the finding
    try:
        found = asyncio.run(examine(settings))
    finally:
        logging.disable(logging.NOTSET)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        console = Console()
        for one in found:
            text = Text.assemble(
                (f"{one.status:<5}", STYLES[one.status]), (f"{one.about}: ", "bold"),
                plain_lines(one.text),
                plain_lines(f"\n     → {one.advice}" if one.advice else "", "italic"),
            )  # fmt: skip
            console.print(text, soft_wrap=True)
    if any(one.status == "fail" for one in found):
        raise typer.Exit(1)
