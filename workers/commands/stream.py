"""``nnsec stream``: the roles of the streams in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from typing import Annotated

import typer

from nnsec.settings import Settings
from workers.commands.plain import start_log


def stream(
    context: typer.Context,
    role: Annotated[
        list[str] | None,
        typer.Option(
            help="score, screen, join, evidence or correlate; repeat for several; default all."
        ),
    ] = None,
) -> None:
    """Run the streams until SIGTERM or Ctrl-C: score, screen, join labels, judge, correlate."""
    from streams.runtime import run  # torch and Faust: seconds that other commands are spared

    settings: Settings = context.obj
    start_log()
    for name in ("faust", "mode"):  # they tell of every service that starts and stops
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours)
    # What was imported stays for good: walking through it held inputs up by 200 ms at a time.
    gc.freeze()
    with asyncio.Runner() as runner:
        status = runner.run(run(settings, role or ()))
        # What did not end in time would not end now either, so nobody waits for its threads.
        logging.shutdown()
        os._exit(status)


def _is_ours(record: logging.LogRecord) -> bool:
    """Leave out what services of Faust's say of themselves in the name of our subclasses."""
    return record.levelno > logging.INFO or not str(record.msg).startswith("[^")
