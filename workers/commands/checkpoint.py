"""``nnsec checkpoint``: made, verified, listed, judged against what was revoked, rolled back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nnsec.adapters.clients import client_options
from nnsec.adapters.registry import Registry
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys
from workers import shelf
from workers.commands import cards, orders
from workers.commands.plain import plain, show_tables

if TYPE_CHECKING:  # what builds networks takes seconds to import
    from nnsec.checkpoints import Created

REFUSED = 1
HEADINGS = ("checkpoint", "created", "parent", "learned", "accuracy", "verified", "tainted")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")

app = typer.Typer(no_args_is_help=True)

Model = Annotated[str, typer.Option(help="The model; default the only one configured.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.callback()
def checkpoint() -> None:
    """Make checkpoints, verify them, and order a model back to an older one."""


@app.command()
def create(
    context: typer.Context,
    weights: Annotated[Path, typer.Option(help="safetensors, as of model.state_dict().")],
    reference: Annotated[Path, typer.Option(help="npz: x (n, *shape) clean inputs, y (n,).")],
    key: Annotated[Path, typer.Option(help="Release key that signs it (private, PEM file).")],
    model: Model = "",
    version: Annotated[int | None, typer.Option(min=1, help="Default: the next free one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    released: Annotated[
        bool, typer.Option("--release", help="Also say, signed, that it is the one that serves.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit detectors and screens on clean data, calibrate, sign, and put it into the registry."""
    settings: Settings = context.obj
    name = orders.one_model(settings, model)
    signer = _signer(settings, key, needed=released)
    if released:
        client_options(settings.kafka)  # a broker must be named before anything is made
    made = _create(settings, name, weights, reference, signer, version=version, seed=seed,
                   quiet=as_json)  # fmt: skip
    manifest = made.manifest
    epoch = _release(settings, name, manifest.version, made.digest, signer) if released else None
    if as_json:
        typer.echo(json.dumps(cards.said(made) | {"epoch": epoch}))
        return
    Console().print(cards.card(made, epoch))
    if not settings.trust.release_keys:
        Console(stderr=True).print(
            f'no worker loads it yet; add to nnsec.toml: [trust] release_keys = ["{key}.pub"]',
            markup=False, style="yellow",
        )  # fmt: skip


@app.command()
def release(
    context: typer.Context,
    key: Annotated[Path, typer.Option(help="Release key that signs it (private, PEM file).")],
    model: Model = "",
    version: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say, signed, that a checkpoint of the registry is the one that serves."""
    settings: Settings = context.obj
    name = orders.one_model(settings, model)
    signer, registry = _signer(settings, key, needed=True), Registry(settings.registry.url)
    from nnsec.checkpoints import load

    number = version or max(registry.list(name), default=1)
    found = load(registry, name, number, release_keys=_public(settings, None),
                 spec=settings.models[name])  # fmt: skip
    epoch = _release(settings, name, number, found.digest, signer)
    if as_json:
        typer.echo(json.dumps({"model": name, "version": number, "digest": found.digest,
                               "epoch": epoch}))  # fmt: skip
    else:
        typer.echo(f"{name}/{number} serves from epoch {epoch}")


@app.command()
def verify(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="A folder …/MODEL/VERSION in place of the registry's.")
    ] = None,
    model: Annotated[str, typer.Option(help="Default: every model in the registry.")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Default: every one.")] = None,
    public: Annotated[
        list[Path] | None,
        typer.Option("--key", help="Public key to trust; repeatable; default [trust]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify signature, digests and content; status 1 if anything is refused, or none is there."""
    settings: Settings = context.obj
    trusted = _public(settings, public)
    registry, wanted = _wanted(settings, path, model, version)
    rows = [shelf.verified(registry, name, number, trusted) for name, number in wanted]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        table = Table("model", "version", "", "digest", "signed by", "why not")
        for row in rows:
            mark = "[green]verified" if row["verified"] else "[red]refused"
            table.add_row(plain(row["model"]), str(row["version"]), mark, row["digest"][:16],
                          row["key"][:16], plain(row["error"]))  # fmt: skip
        show_tables(table) if rows else typer.echo("there is no checkpoint to verify")
    if not rows or not all(row["verified"] for row in rows):
        raise typer.Exit(REFUSED)


@app.command("list")
def list_(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Default: every model in the registry.")] = "",
    as_json: AsJson = False,
) -> None:
    """List checkpoints: what they are, what they learned from, and whether they may serve."""
    settings: Settings = context.obj
    trusted = _public(settings, None)
    revocations = asyncio.run(shelf.known_revocations(settings))
    registry = Registry(settings.registry.url)
    names = [model] if model else registry.models()
    rows = [row for name in names for row in shelf.listed(settings, trusted, name, revocations)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(*HEADINGS, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*_cells(row))
    show_tables(table) if rows else typer.echo(f"no checkpoint in {registry.url}")
    if revocations is None:
        Console(stderr=True).print(
            "Kafka does not answer, so nobody knows what was revoked", style="yellow"
        )


@app.command()
def tainted(context: typer.Context, model: Model = "", as_json: AsJson = False) -> None:
    """Tell which checkpoints learned from samples that were revoked since, and how."""
    settings: Settings = context.obj
    name = orders.one_model(settings, model)
    trusted = _public(settings, None)
    revocations = asyncio.run(shelf.read_revocations(settings))
    rows = shelf.listed(settings, trusted, name, revocations)
    bad = {row["version"]: row["tainted"] for row in rows if row["tainted"]}
    clean = [row["version"] for row in rows if row["verified"] and not row["tainted"]]
    if as_json:
        typer.echo(json.dumps({"model": name, "tainted": bad, "clean": clean}))
        return
    for number, why in bad.items():
        typer.echo(f"{name}/{number} {why}")
    best = f"the newest clean one is {max(clean)}" if clean else "no clean one is left"
    typer.echo(f"{len(bad)} of {len(rows)} checkpoints are tainted; {best}")


@app.command()
def rollback(
    context: typer.Context,
    key: orders.Key,
    reason: orders.Reason,
    model: Model = "",
    to: Annotated[
        int | None, typer.Option(min=1, help="Version; default the newest clean one.")
    ] = None,
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: AsJson = False,
) -> None:
    """Order the remediation worker to roll a model back; it verifies the checkpoint again."""
    settings: Settings = context.obj
    name = orders.one_model(settings, model)
    orders.give(
        settings, "rollback", model=name, target=name if to is None else str(to), reason=reason,
        key=key, minutes=minutes, as_json=as_json,
    )  # fmt: skip


# --- making ---


def _signer(settings: Settings, path: Path, *, needed: bool) -> keys.PrivateKey:
    """The release key; one that no worker trusts is refused where any is named or needed."""
    signer = keys.load_private(path)
    trusted = {keys.load_public(name).id for name in settings.trust.release_keys}
    if signer.id not in trusted and (trusted or needed):
        raise ConfigError(
            f"{path} is no key of [trust] release_keys, so no worker would load what it signs; "
            f"add {path}.pub there"
        )
    return signer


def _create(
    settings: Settings, model: str, weights: Path, reference: Path, signer: keys.PrivateKey,
    *, version: int | None, seed: int, quiet: bool,
) -> Created:  # fmt: skip
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        from nnsec.checkpoints import create as make
        from nnsec.checkpoints.creation import STEPS
        from nnsec.checkpoints.reference import read

        x, y = read(reference)
        bar.update(task, total=len(STEPS))

        def told(step: str) -> None:
            bar.update(task, description=step, completed=STEPS.index(step))

        return make(
            Registry(settings.registry.url), model=model, spec=settings.models[model],
            weights=weights, x=x, y=y, key=signer, now=datetime.now(UTC), seed=seed,
            version=version, told=told,
        )  # fmt: skip


def _release(
    settings: Settings, model: str, version: int, digest: str, signer: keys.PrivateKey
) -> int:
    """Publish that a checkpoint serves; returns the epoch."""
    from nnsec.adapters.kafka import outage
    from workers.releases import release

    outage.listen()
    said = asyncio.run(
        release(settings, model=model, version=version, digest=digest, key=signer,
                reason="released by hand")
    )  # fmt: skip
    return said.epoch


# --- looking ---


def _public(settings: Settings, files: Sequence[Path] | None) -> tuple[keys.PublicKey, ...]:
    paths: Sequence[str | Path] = files or settings.trust.release_keys
    if not paths:
        raise ConfigError("no key is trusted: set [trust] release_keys, or name one with --key")
    return tuple(keys.load_public(path) for path in paths)


def _wanted(
    settings: Settings, path: Path | None, model: str, version: int | None
) -> tuple[Registry, list[tuple[str, int]]]:
    """Which checkpoints of which registry are to be verified."""
    if path is not None:
        if model or version:
            raise ConfigError("name a folder, or --model and --version, and not both")
        whole = path.resolve()
        if not _NUMBER.fullmatch(whole.name):
            raise ConfigError(f"{path}: a checkpoint's folder ends in MODEL/VERSION")
        return Registry(str(whole.parents[1])), [(whole.parent.name, int(whole.name))]
    registry = Registry(settings.registry.url)
    if version is not None:
        return registry, [(orders.one_model(settings, model), version)]
    names = [orders.one_model(settings, model)] if model else registry.models()
    return registry, [(name, number) for name in names for number in registry.list(name)]


def _cells(row: dict[str, Any]) -> list[str | Text]:
    name = plain(f"{row['model']}/{row['version']}")
    if not row["verified"]:
        return [name, *[""] * 4, plain(f"no: {row['error']}", "red"), ""]
    attacked = row["robust_accuracy"]
    accuracy = f"{row['clean_accuracy']:.1%}" + ("" if attacked is None else f" / {attacked:.1%}")
    taint = {None: "?", "": "no"}.get(row["tainted"], plain(row["tainted"] or "", "red"))
    return [
        name, row["created"][:16].replace("T", " "), str(row["parent"] or ""), str(row["rows"]),
        accuracy, "[green]yes", taint,
    ]  # fmt: skip
