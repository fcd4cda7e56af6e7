"""``nnsec send``: inputs, training samples and labels from a file or a data set; the canary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nnsec.adapters.clients import outage
from nnsec.adapters.declaration import declare
from nnsec.adapters.publisher import publisher
from nnsec.adapters.records import Out
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.inference import encode_request
from schemas.label import Label
from schemas.training import encode_sample
from workers.commands import orders
from workers.data_file import Batches, fit, read
from workers.words import counted

MOST_AT_ONCE = 256
"""Records that are sent before their acknowledgements are waited for."""
PACE_SECONDS = 0.05
"""With a rate, about this much is sent at once."""

app = typer.Typer(no_args_is_help=True)

File = Annotated[
    Path | None, typer.Argument(help="npz with x, and y where labels are sent.", show_default=False)
]
DatasetName = Annotated[str, typer.Option("--dataset", help="digits or mnist, in place of a file.")]
Folder = Annotated[Path | None, typer.Option("--data", help="Folder of mnist.npz.")]
Model = Annotated[str, typer.Option("--model", help="Default: the one that is configured.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Rows in a record.")]
Rate = Annotated[float, typer.Option("--rate", min=0, help="Rows a second; 0 for no limit.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Rows to send; 0 for all.")]
Ids = Annotated[str, typer.Option("--ids", help="Records are called IDS-0, IDS-1, …")]
Encoding = Annotated[str, typer.Option("--encoding", help="binary or json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Say what was sent as JSON.")]


@app.callback()
def send() -> None:
    """Send inputs, training samples or labels, and wait until all are acknowledged; the canary."""


@app.command()
def inputs(
    context: typer.Context,
    file: File = None,
    dataset: DatasetName = "",
    data: Folder = None,
    model: Model = "",
    client: Annotated[str, typer.Option(help="Who sends them.")] = "nnsec-send",
    batch: Batch = 1,
    rate: Rate = 0.0,
    limit: Limit = 0,
    ids: Ids = "",
    encoding: Encoding = "binary",
    as_json: AsJson = False,
) -> None:
    """Send inputs to be scored."""
    settings: Settings = context.obj
    found, name, ids = read(file, dataset, data, limit), choose(settings, model), ids or _ids()
    how = _encoding(encoding)
    fit(found, name, settings.models[name], labelled=False)

    def outs() -> Iterator[tuple[int, Out]]:
        for number, rows in Batches(len(found.x), batch):
            x = found.x[rows]
            value, headers = encode_request(
                model=name, x=x, id=f"{ids}-{number}", client=client, encoding=how
            )
            yield len(x), Out("inference.inputs", value, client.encode(), headers)

    _run(settings, outs(), len(found.x), rate=rate, ids=ids, as_json=as_json)


@app.command()
def samples(
    context: typer.Context,
    file: File = None,
    dataset: DatasetName = "",
    data: Folder = None,
    model: Model = "",
    source: Annotated[str, typer.Option(help="Where they come from.")] = "nnsec-send",
    batch: Batch = 1,
    rate: Rate = 0.0,
    limit: Limit = 0,
    ids: Ids = "",
    encoding: Encoding = "binary",
    as_json: AsJson = False,
) -> None:
    """Send training samples to be screened."""
    settings: Settings = context.obj
    found, name, ids = read(file, dataset, data, limit), choose(settings, model), ids or _ids()
    labels, how = found.labels(), _encoding(encoding)
    fit(found, name, settings.models[name], labelled=True)

    def outs() -> Iterator[tuple[int, Out]]:
        for number, rows in Batches(len(found.x), batch):
            x = found.x[rows]
            value, headers = encode_sample(
                model=name, x=x, y=labels[rows], source=source, id=f"{ids}-{number}", encoding=how
            )
            yield len(x), Out("training.samples", value, source.encode(), headers)

    _run(settings, outs(), len(found.x), rate=rate, ids=ids, as_json=as_json)


@app.command()
def labels(
    context: typer.Context,
    ids: Annotated[str, typer.Option("--ids", help="What `send inputs` called its records.")],
    file: File = None,
    dataset: DatasetName = "",
    data: Folder = None,
    batch: Batch = 1,
    rate: Rate = 0.0,
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Send the labels of inputs that were sent before, from the same data with the same --batch."""
    settings: Settings = context.obj
    found = read(file, dataset, data, limit)
    truth = found.labels()

    def outs() -> Iterator[tuple[int, Out]]:
        for number, rows in Batches(len(truth), batch):
            name = f"{ids}-{number}"
            for row, label in enumerate(truth[rows].tolist()):
                yield 1, Out("labels", Label(id=name, row=row, label=label).encode(), name.encode())

    _run(settings, outs(), len(truth), rate=rate, ids=ids, as_json=as_json)


@app.command()
def canary(
    context: typer.Context,
    key: orders.Key,
    model: Annotated[str, typer.Option("--model", help="The model to wake.")] = "canary",
    seconds: Annotated[float, typer.Option(min=1, help="How long it may take.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Open one incident with noise, and close it as an operator: the whole path, tried for real.

    The model `canary` is one of its own, so that nobody is woken: a second table like your model's
    in the configuration, and a checkpoint of it.
    """
    from workers.canary import play

    settings: Settings = context.obj
    outage.listen()
    told = asyncio.run(play(settings, orders.one_model(settings, model), key, seconds))
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(
            f"incident {told['incident']} opened after {told['opened_seconds']:g} s and "
            f"{told['inputs']} inputs, and was dismissed after {told['closed_seconds']:g} s more"
        )


def choose(settings: Settings, model: str) -> str:
    """The model that is meant.

    Raises
    ------
    ConfigError
        If it is not configured, or none is named and not just one is configured.
    """
    return orders.one_model(settings, model or settings.kafka.default_model)


def _encoding(text: str) -> Literal["json", "binary"]:
    if text == "json":
        return "json"
    if text == "binary":
        return "binary"
    raise ConfigError(f"no encoding {text!r}; there are binary and json")


def _ids() -> str:
    return uuid4().hex[:8]


def _run(
    settings: Settings, outs: Iterator[tuple[int, Out]], rows: int, *, rate: float, ids: str,
    as_json: bool,
) -> None:  # fmt: skip
    outage.listen()
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json, transient=True) as bar:
        task = bar.add_task("sending", total=rows)
        records, seconds = asyncio.run(
            publish_all(settings, outs, rate=rate, done=lambda count: bar.advance(task, count))
        )
    said = {"rows": rows, "records": records, "seconds": round(seconds, 3), "ids": ids}
    if as_json:
        typer.echo(json.dumps(said))
    else:
        typer.echo(
            f"sent {counted(rows, 'row')} in {counted(records, 'record')} in {seconds:.1f} s, "
            f"all acknowledged; "
            f"they are called {ids}-0 to {ids}-…"
        )


async def publish_all(
    settings: Settings, outs: Iterator[tuple[int, Out]], *, rate: float,
    done: Callable[[int], object],
) -> tuple[int, float]:  # fmt: skip
    """Publish records, each with the number of its rows, and wait for their acknowledgements.

    Parameters
    ----------
    rate:
        Rows a second; 0 for as fast as the broker acknowledges.
    done:
        Called with the number of rows that were acknowledged.

    Returns
    -------
    tuple
        The number of records, and seconds.
    """
    await declare(settings, now=datetime.now(UTC))
    loop = asyncio.get_running_loop()
    begun, records, rows = loop.time(), 0, 0
    async with publisher(settings) as publish:
        while chunk := list(islice(outs, _at_once(rate, rows / records if records else 1.0))):
            await publish(*(out for _, out in chunk))
            count = sum(rows for rows, _ in chunk)
            records, rows = records + len(chunk), rows + count
            done(count)
            if rate:
                await asyncio.sleep(max(0.0, begun + rows / rate - loop.time()))
    return records, loop.time() - begun


def _at_once(rate: float, rows: float) -> int:
    """How many records of so many rows go out together."""
    return max(1, min(MOST_AT_ONCE, int(rate * PACE_SECONDS / rows))) if rate else MOST_AT_ONCE
