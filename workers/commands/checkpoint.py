"""``nnsec checkpoint``: made, verified, listed, judged against what was revoked, rolled back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from nnsec.adapters.registry import Registry
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys
from workers import shelf
from workers.commands import orders
from workers.commands.plain import printable

if TYPE_CHECKING:  # what builds networks takes seconds to import
    from nnsec.checkpoints import Created, Manifest

REFUSED = 1
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
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    release: Annotated[
        bool, typer.Option("--release", help="Also say, signed, that it is the one that serves.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit detectors and screens on clean data, calibrate, sign, and put it into the registry."""
    settings: Settings = context.obj
    name = orders.one_model(settings, model)
    signer = keys.load_private(key)
    trusted = tuple(keys.load_public(path).id for path in settings.trust.release_keys)
    if signer.id not in trusted and (trusted or release):
        raise ConfigError(
            f"{key} is no key of [trust] release_keys, so no worker would load what it signs; "
            f"add {key}.pub there"
        )
    made = _create(settings, name, weights, reference, signer, version=version, seed=seed,
                   quiet=as_json)  # fmt: skip
    epoch = _release(settings, made, signer) if release else None
    if as_json:
        typer.echo(json.dumps(_said(made) | {"epoch": epoch}))
        return
    _show_created(made, epoch)
    if not trusted:
        Console(stderr=True).print(
            f'no worker loads it yet; add to nnsec.toml: [trust] release_keys = ["{key}.pub"]',
            markup=False, style="yellow",
        )  # fmt: skip


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
    """Verify signature, digests and content; the exit status is 1 if anything is refused."""
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
            table.add_row(row["model"], str(row["version"]), mark, row["digest"][:16],
                          row["key"][:16], printable(row["error"]))  # fmt: skip
        Console().print(table if rows else "there is no checkpoint to verify")
    if not all(row["verified"] for row in rows):
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
    names = [model] if model else Registry(settings.registry.url).models()
    rows = [row for name in names for row in shelf.listed(settings, trusted, name, revocations)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("model", "version", "created", "parent", "rows learned", "accuracy",
                  "under attack", "verified", "tainted")  # fmt: skip
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table if rows else f"no checkpoint in {settings.registry.url}")
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


def _release(settings: Settings, made: Created, signer: keys.PrivateKey) -> int:
    from nnsec.adapters.kafka import outage
    from workers.releases import release

    outage.listen()
    manifest = made.manifest
    said = asyncio.run(
        release(settings, model=manifest.model, version=manifest.version, digest=made.digest,
                key=signer, reason="released when it was made", now=datetime.now(UTC))
    )  # fmt: skip
    return said.epoch


def _said(made: Created) -> dict[str, Any]:
    manifest, figures, metrics = made.manifest, made.manifest.calibration, made.manifest.metrics
    return {
        "model": manifest.model, "version": manifest.version, "digest": made.digest,
        "location": made.location, "detectors": list(manifest.detectors), "n": figures.n,
        "alpha": figures.alpha, "smallest_p": figures.smallest_p,
        "false_positive_rate": list(figures.false_positive_rate),
        "smallest_attack_share": figures.smallest_attack_share,
        "clean_accuracy": metrics.clean_accuracy, "robust_accuracy": metrics.robust_accuracy,
        "epsilon": metrics.epsilon, "steps": metrics.steps,
    }  # fmt: skip


def _show_created(made: Created, epoch: int | None) -> None:
    manifest, metrics = made.manifest, made.manifest.metrics
    table = Table(show_header=False, title=f"{manifest.model}/{manifest.version}")
    table.add_row("digest", made.digest)
    table.add_row("lies in", made.location)
    table.add_row("detectors", ", ".join(manifest.detectors))
    for name, value in promises(manifest):
        table.add_row(name, value)
    table.add_row("accuracy", f"{metrics.clean_accuracy:.1%} of {metrics.n} held-out inputs")
    if metrics.robust_accuracy is not None:
        how = f"PGD, L∞ {metrics.epsilon:g} of the range, {metrics.steps} steps"
        table.add_row("under attack", f"{metrics.robust_accuracy:.1%} ({how})")
    served = f"epoch {epoch}" if epoch else "not released; `--release` has workers serve it"
    table.add_row("serves", served)
    Console().print(table)


def promises(manifest: Manifest) -> Iterable[tuple[str, str]]:
    """What a checkpoint's calibration can and cannot promise, in words."""
    figures = manifest.calibration
    low, high = figures.false_positive_rate
    yield "calibrated on", f"{figures.n} clean inputs"
    yield "smallest p-value", f"{figures.smallest_p:.2g}"
    flagged = f"{low:.2%} to {high:.2%} at α = {figures.alpha:g} (90 % of all draws)"
    yield "clean inputs flagged", flagged if high else "none, ever: α needs more clean inputs"
    share = figures.smallest_attack_share
    yield (
        "attacks found",
        (
            f"only clients of whose inputs more than {share:.1%} are attacks"
            if share < 1
            else "none: with so few clean inputs no client is ever accused"
        ),
    )


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
    names = [model] if model else registry.models()
    return registry, [(name, number) for name in names for number in registry.list(name)]


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["verified"]:
        refused = f"[red]no: {_plain(row['error'])}"
        return [row["model"], str(row["version"]), *[""] * 5, refused, ""]
    attacked = row["robust_accuracy"]
    taint = {None: "?", "": "no"}.get(row["tainted"], f"[red]{_plain(row['tainted'] or '')}")
    return [
        row["model"], str(row["version"]), row["created"][:19].replace("T", " ") + "Z",
        str(row["parent"] or ""), str(row["rows"]), f"{row['clean_accuracy']:.1%}",
        "" if attacked is None else f"{attacked:.1%}", "[green]yes", taint,
    ]  # fmt: skip


def _plain(text: str) -> str:
    return escape(printable(text))
