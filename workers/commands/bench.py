"""``nnsec bench``: what the monitor finds, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # torch takes seconds to import
    from workers.bench.detection import Rate, Report

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure the monitor on real data."""


@app.command()
def detection(
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many; each deals the data anew.")] = 3,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    honest: Annotated[int, typer.Option(min=1, help="Honest inputs a seed.")] = 1000,
    attacks: Annotated[int, typer.Option(min=3, help="Attack inputs a seed, over all ε.")] = 450,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Show what each detector finds of PGD attacks, and all of them fused."""
    from workers.bench.detection import measure

    console, errors = Console(), Console(stderr=True)
    report = None
    with errors.status("the first network is trained and attacked") as status:
        chosen = range(first, first + seeds)
        for report in measure(dataset, data, seeds=chosen, honest=honest, attacks=attacks):
            status.update(f"{len(report.seeds)} of {seeds} seeds done")
    assert report is not None  # noqa: S101 - there is at least one seed
    console.print(_table(report))
    if json_file is not None:
        json_file.write_text(json.dumps(report.figures(), indent=2) + "\n", "utf-8")


def _table(report: Report) -> Table:
    low, high = min(report.points), max(report.points)
    table = Table(
        "detector", "ε", "AUROC", "attacks flagged", "95 %", "honest flagged", "95 %",
        title=f"{report.dataset}: p ≤ {report.alpha:g}, {low} to {high} calibration points, "
        f"{len(report.seeds)} seeds, accuracy {report.accuracy.value:.1%}",
    )  # fmt: skip
    before = ""
    for line in report.lines:
        new = line.detector != before
        if new and before:
            table.add_section()
        table.add_row(
            line.detector if new else "", f"{line.epsilon:g}", f"{line.auroc:.3f}",
            *_said(line.found), *(_said(line.benign) if new else ("", "")),
        )  # fmt: skip
        before = line.detector
    return table


def _said(rate: Rate) -> tuple[str, str]:
    low, high = rate.interval
    return f"{rate.hits} of {rate.n} ({rate.value:.1%})", f"{low:.1%} to {high:.1%}"
