"""``nnsec demo``: a network attacked and defended, live."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnsec.errors import ConfigError
from nnsec.settings import Settings


def demo(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", dir_okay=False, writable=True, help="Write the summary to this file."
        ),
    ] = None,
    keep_running: Annotated[
        bool, typer.Option(help="Leave everything up afterwards, for a producer of your own.")
    ] = False,
) -> None:
    """Start everything, attack it in four ways, and show what was found.

    The exit status is 1 if a record was lost, an attack was missed, or the model was not rolled
    back. Uses the embedded services unless the configuration names others.
    """
    began = time.monotonic()
    if json_file is not None and not os.access(json_file.parent, os.W_OK):
        raise ConfigError(f"--json {json_file}: {json_file.parent} is no folder to write to")
    # Told to end while the services start, it must stop them as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from workers.demo import report, stage  # imported late: they bring torch along
    from workers.demo.material import Material
    from workers.demo.play import Demo
    from workers.demo.summary import Summary, problems

    settings: Settings = context.obj
    console = Console()

    def done(summary: Summary) -> None:
        report.say(console, summary, problems(summary), str(stage.FOLDER), running=keep_running)
        if json_file is not None:
            json_file.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")

    material = Material.load(dataset, data, seed=seed)
    summary = Demo(settings, material, console, seed, began, done).run(keep_running=keep_running)
    if problems(summary):
        raise typer.Exit(1)
