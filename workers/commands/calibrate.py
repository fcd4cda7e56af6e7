"""``nnsec calibrate``: what a checkpoint's calibration can and cannot promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nnsec.adapters.registry import Registry
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys
from workers.commands import orders
from workers.commands.cards import promises

if TYPE_CHECKING:  # what builds networks takes seconds to import
    from nnsec.checkpoints import Checkpoint


def calibrate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="The model; default the only one configured.")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="npz of clean inputs x, y that it has never seen: try it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a checkpoint's calibration can and cannot promise, and try it on clean inputs."""
    settings: Settings = context.obj
    name = orders.one_model(settings, model)
    found = _load(settings, name, version)
    tried = _try(found, settings, name, reference) if reference else {}
    figures = found.manifest.calibration
    if as_json:
        said = figures.model_dump(mode="json", exclude={"thresholds", "rates"})
        about = {"model": name, "version": found.manifest.version, "digest": found.digest}
        typer.echo(json.dumps(about | said | {"tried": tried or None}))
        return
    table = Table(show_header=False, title=f"{name}/{found.manifest.version}")
    for what, text in promises(found.manifest):
        table.add_row(what, text)
    if tried:
        low, high = tried["interval"]
        table.add_row(
            "tried on",
            f"{tried['flagged']} of {tried['n']} clean inputs flagged: the rate is {low:.2%} to "
            f"{high:.2%} (95 %); {tried['verdict']}",
        )
    Console().print(table)


def _load(settings: Settings, model: str, version: int | None) -> Checkpoint:
    from nnsec.checkpoints import load

    registry = Registry(settings.registry.url)
    there = registry.list(model)
    if not there:
        raise ConfigError(
            f"there is no checkpoint of {model} in {registry.url}; "
            "make one with `nnsec checkpoint create`"
        )
    trusted = tuple(keys.load_public(path) for path in settings.trust.release_keys)
    return load(registry, model, version or max(there), release_keys=trusted,
                spec=settings.models[model])  # fmt: skip


def _try(found: Checkpoint, settings: Settings, model: str, path: Path) -> dict[str, Any]:
    """Score clean inputs and compare the share that is flagged with what was promised."""
    from scipy.stats import beta

    from nnsec.checkpoints import reference

    spec, manifest = settings.models[model], found.manifest
    x, y = reference.read(path)
    # Only what is wrong with the data is asked here: any number of them can be tried.
    data = reference.check(
        x, y, input=spec.input, classes=len(manifest.classes), alpha=spec.alpha, counted=False
    )
    if data.digest() == manifest.reference_digest:
        raise ConfigError(
            f"{path} is what the checkpoint was calibrated on, which shows nothing; "
            "give clean inputs that it has never seen"
        )
    n = len(data.x)
    flagged = int(found.suite.score(data.x).flag.sum())
    low = float(beta.ppf(0.025, flagged, n - flagged + 1)) if flagged else 0.0
    high = float(beta.ppf(0.975, flagged + 1, n - flagged)) if flagged < n else 1.0
    most = manifest.calibration.false_positive_rate[1]
    verdict = (
        "more than promised: these inputs are not like those that it was calibrated on"
        if low > most
        else "no more than promised"
    )
    return {"n": n, "flagged": flagged, "interval": [low, high], "verdict": verdict}
