"""``nnsec worker``: one of the processes around the streams, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Annotated

import typer

from nnsec.settings import Settings
from workers.commands.plain import start_log

app = typer.Typer(no_args_is_help=True, help="Run a worker: remediation, view or trainer.")


@app.command()
def remediation(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
) -> None:
    """Turn incidents and commands into actions: quarantine, roll back, promote, release."""
    settings: Settings = context.obj
    if dry_run:
        changed = settings.remediation.model_copy(update={"dry_run": True})
        settings = settings.model_copy(update={"remediation": changed})
    from workers.remediation import run

    _run(run(settings))


@app.command()
def view(context: typer.Context) -> None:
    """Keep what holds now in Redis, for people and programs to read."""
    from workers.view import run

    _run(run(context.obj))


@app.command()
def trainer(context: typer.Context) -> None:
    """Train on from what the screens accepted, and ask to promote what comes of it."""
    from workers.trainer import run

    _run(run(context.obj))


def _run(work: Coroutine[None, None, int]) -> None:
    start_log()
    with asyncio.Runner() as runner:
        status = runner.run(work)
        if status:
            # What did not end in time would not end now either, so nobody waits for its threads.
            logging.shutdown()
            os._exit(status)
