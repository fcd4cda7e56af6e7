"""``nnsec demo``: a network attacked and defended, live."""

from __future__ import annotations

import signal
import time
from typing import Annotated

import typer
from rich.console import Console

from nnsec.settings import Settings
from workers.commands.figures import Json, write


def demo(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    json_file: Json = None,
    keep_running: Annotated[
        bool, typer.Option(help="Leave everything up afterwards, for a producer of your own.")
    ] = False,
) -> None:
    """Start everything, attack it in four ways, and show what was found.

    The exit status is 1 if a record was lost, an attack was missed, or the model was not rolled
    back. Uses the embedded services unless the configuration names others.
    """
    began = time.monotonic()
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
        write(json_file, summary)

    material = Material.load(dataset, data, seed=seed)
    summary = Demo(settings, material, console, seed, began, done).run(keep_running=keep_running)
    if problems(summary):
        raise typer.Exit(1)
