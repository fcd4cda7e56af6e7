"""``nnsec bench``: what the monitor finds, measured."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workers.commands.bench_suite import suite
from workers.commands.figures import Json, write

if TYPE_CHECKING:  # torch takes seconds to import
    from workers.bench.delivery import Report as Delivered
    from workers.bench.detection import Rate, Report
    from workers.bench.latency import Report as Late
    from workers.bench.scoring import Report as Scored

RATES = (400.0, 1500.0)

Kafka = Annotated[
    str | None,
    typer.Option(
        envvar="KAFKA_HOME", help="Apache Kafka's folder, or a broker's address; else embedded."
    ),
]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure the monitor on real data."""


@app.command()
def detection(
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many; each deals the data anew.")] = 3,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    honest: Annotated[int, typer.Option(min=1, help="Honest inputs a seed.")] = 1000,
    attacks: Annotated[int, typer.Option(min=3, help="Attack inputs a seed, over all ε.")] = 450,
    json_file: Json = None,
) -> None:
    """Show what each detector finds of PGD attacks, and all of them fused."""
    from workers.bench.detection import joined, measure

    reports: list[Report] = []
    with Console(stderr=True).status("a network is trained and attacked") as status:
        chosen = range(first, first + seeds)
        for report in measure(dataset, data, seeds=chosen, honest=honest, attacks=attacks):
            reports.append(report)
            status.update(f"{len(reports)} of {seeds} seeds done")
    whole = joined(reports)
    Console().print(_table(whole))
    write(json_file, whole.figures() | {"by_seed": [report.figures() for report in reports]})


@app.command()
def delivery(
    kafka: Kafka = None,
    records: Annotated[int, typer.Option(min=1000, help="Inputs a round.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each does them.")] = 5,
    json_file: Json = None,
) -> None:
    """Show how fast records pass, beside stock Faust and a bare loop that do the same work."""
    from workers.bench.broker import broker
    from workers.bench.delivery import measure

    with Console(stderr=True).status("records are written") as status, broker(kafka) as (at, words):
        for report in measure(at, words, records=records, rounds=rounds):
            status.update(f"{len(report.rounds)} of {rounds} rounds done")
    Console().print(_delivered(report))
    write(json_file, report.figures())


@app.command()
def scoring(
    kafka: Kafka = None,
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    inputs: Annotated[int, typer.Option(min=640, help="Inputs a round and contest.")] = 12_800,
    rounds: Annotated[int, typer.Option(min=1, help="How often each does them.")] = 3,
    json_file: Json = None,
) -> None:
    """Show what the scoring role takes, beside a bare loop that only runs the model."""
    from workers.bench.broker import broker
    from workers.bench.scoring import measure
    from workers.demo.material import Material

    material = Material.load(dataset, data, seed=0)
    with (
        Console(stderr=True).status("a network is trained") as status,
        broker(kafka) as (at, words),
    ):
        for report in measure(at, words, material, inputs=inputs, rounds=rounds):
            status.update(f"{len(report.rounds)} of {rounds} rounds done")
    Console().print(_scored(report))
    write(json_file, report.figures())


@app.command()
def latency(
    kafka: Kafka = None,
    dataset: Annotated[str, typer.Option(help="digits, or mnist with --data.")] = "digits",
    data: Annotated[str | None, typer.Option(help="Folder of mnist.npz.")] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=1.0,
            help="Inputs a second; repeatable. Without one 400, 1,500 and shares of saturation.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long each rate is sent.")] = 10.0,
    json_file: Json = None,
) -> None:
    """Show how long the whole monitor takes from an input to its score and to an alert."""
    from workers.bench.broker import broker
    from workers.bench.latency import SHARES, last
    from workers.demo.material import Material

    with (
        Console(stderr=True).status("a network is trained") as status,
        broker(kafka) as (at, words),
    ):
        report = asyncio.run(
            last(
                at, words, Material.load(dataset, data, seed=0), rates=rate or RATES,
                shares=() if rate else SHARES, seconds=seconds, told=status.update,
            )
        )  # fmt: skip
    Console().print(_late(report))
    write(json_file, report.figures())


def _late(report: Late) -> Table:
    from workers.bench.latency import QUANTILES

    table = Table(
        title=f"{report.broker}, {report.dataset}: ms from an input to its score and, from the "
        f"row that crossed the bound, to the alert",
        caption=f"first score {report.first_score:.1f} s after the start; saturation "
        f"{report.saturation:,.0f} inputs/s; {report.seconds:g} s a rate",
        box=SIMPLE_HEAD,
    )
    names = " / ".join(f"p{100 * q:g}" for q in QUANTILES)
    for name in ("inputs/s", f"score {names}", "alerts", f"alert {names}", "lost", "MB/min"):
        table.add_column(name, justify="right")
    for line in report.lines:
        scores, alerts = (
            " / ".join(f"{value:.0f}" for value in found.values)
            for found in (line.scores, line.alerts)
        )
        asked = f"{line.sent:,.0f}" + (f" ({line.share:.0%})" if line.share else "")
        table.add_row(
            asked, scores, str(line.alerts.n), alerts, str(line.lost), f"{line.memory:.1f}"
        )
    return table


def _scored(report: Scored) -> Table:
    from workers.bench.scoring import BARE, CONTESTS

    table = Table(
        title=f"{report.broker}, {report.dataset}: {report.inputs:,} inputs, "
        f"{len(report.rounds)} rounds, medians",
        caption=f"{report.in_doubt:.1%} of the honest inputs went through all detectors",
        box=SIMPLE_HEAD,
    )
    for name in ("", "inputs/s", "MB/s", "of the bare loop"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for one in CONTESTS:
        rate = report.rate(one)
        ratio = "" if one == BARE else f"{report.ratio(one):.2f}×"
        table.add_row(
            one.words, f"{rate.rows_per_second:,.0f}", f"{rate.megabytes_per_second:.1f}", ratio
        )
    return table


def _delivered(report: Delivered) -> Table:
    from workers.bench.delivery import CONTESTANTS, OURS

    table = Table(
        title=f"{report.broker}: {report.records:,} records of {report.size} bytes, "
        f"{len(report.rounds)} rounds, medians",
        caption=f"strict decoding of a binary record of 784 values: {report.decode_us:.1f} µs\n"
        + "\n".join(f"{name}: {us:.1f} µs" for name, us in report.steps_us.items()),
        box=SIMPLE_HEAD,
    )
    for name in ("", "records/s", "µs CPU a record", "nnsec is faster by"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name in CONTESTANTS:
        rate = report.rate(name)
        times = "" if name == OURS else f"{report.ratio(name):.2f}×"
        table.add_row(name, f"{rate.per_second:,.0f}", f"{rate.cpu_us:.1f}", times)
    return table


def _table(report: Report) -> Table:
    low, high = min(report.points), max(report.points)
    table = Table(
        title=f"{report.dataset}: p ≤ {report.alpha:g} of {low} to {high} points, "
        f"{len(report.seeds)} seeds, accuracy {report.accuracy.value:.1%}",
        caption="flagged and honest: % of successful attacks and of honest inputs that are flagged",
        box=SIMPLE_HEAD,
    )
    for name in ("detector", "ε", "AUROC", "n", "flagged (95 %)", "honest (95 %)"):
        table.add_column(name, no_wrap=True)
    before = ""
    for line in report.lines:
        new = line.detector != before
        if new and before:
            table.add_section()
        table.add_row(
            line.detector if new else "", f"{line.epsilon:g}", f"{line.auroc:.3f}",
            str(line.found.n), _said(line.found), _said(line.benign) if new else "",
        )  # fmt: skip
        before = line.detector
    return table


def _said(rate: Rate) -> str:
    low, high = (100 * bound for bound in rate.interval)
    return f"{100 * rate.value:.1f} ({low:.1f}-{high:.1f})"


app.command()(suite)
