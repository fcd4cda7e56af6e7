"""``nnsec bench suite``: what the detectors cost beside the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workers.commands.figures import Json, write

if TYPE_CHECKING:  # torch takes seconds to import
    from workers.bench.suite import Report


def suite(
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the deal and of the batches.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Each figure is a median over these.")] = 9,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0 leaves it as it is.")] = 1,
    json_file: Json = None,
) -> None:
    """Show what all detectors cost beside the model alone, in the same run."""
    import torch

    from workers.bench.suite import measure

    if threads:
        torch.set_num_threads(threads)
    with Console(stderr=True).status("a network is trained, and its suite fitted and timed"):
        report = measure(dataset, data, seed=seed, rounds=rounds)
    console = Console()
    console.print(_table(report))
    console.print(_detectors(report))
    write(json_file, report.figures())


def _table(report: Report) -> Table:
    table = Table(
        title=f"{report.dataset}: µs an input, on {report.device}, threads: {report.threads}",
        caption="× is the rate of the whole suite over that of the model alone, in the same round",
        box=SIMPLE_HEAD,
    )
    heads = ("batch", "model", f"in {report.tile}s", "suite", "×", "in doubt", "suite", "×")
    for head in (*heads, "in doubt"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in report.lines:
        table.add_row(
            str(line.batch), f"{line.bare:.0f}", f"{line.forward:.0f}",
            f"{line.whole:.0f}", f"{line.ratio:.2f}", f"{line.in_doubt:.0%}",
            f"{line.doubtful:.0f}", f"{line.ratio_doubtful:.2f}", f"{line.in_doubt_doubtful:.0%}",
        )  # fmt: skip
    return table


def _detectors(report: Report) -> Table:
    batch = report.lines[-1].batch
    table = Table(title=f"each detector on {batch} inputs at once", box=SIMPLE_HEAD)
    table.add_column("detector")
    table.add_column("µs an input", justify="right")
    for name, cost in report.detectors.items():
        table.add_row(name, f"{cost:.1f}")
    return table
