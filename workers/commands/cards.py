"""What a checkpoint is and promises, as a card for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # what builds networks takes seconds to import
    from nnsec.checkpoints import Created, Manifest

GUESSING = (
    "that is about what guessing gives: do the labels fit, and does the network expect values in "
    "[0, 1], as it is given them?"
)


def said(made: Created) -> dict[str, Any]:
    """A new checkpoint, for programs."""
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


def card(made: Created, epoch: int | None) -> Table:
    """A new checkpoint, for people; the epoch if it was released."""
    manifest, metrics = made.manifest, made.manifest.metrics
    table = Table(show_header=False, title=f"{manifest.model}/{manifest.version}")
    table.add_row("digest", Text(made.digest, overflow="fold"))
    table.add_row("lies in", Text(made.location, overflow="fold"))
    table.add_row("detectors", ", ".join(manifest.detectors))
    for name, value in promises(manifest):
        table.add_row(name, value)
    table.add_row("accuracy", f"{metrics.clean_accuracy:.1%} of {metrics.n} held-out inputs")
    chance = 1 / len(manifest.classes)
    if metrics.clean_accuracy <= chance + 3 * math.sqrt(chance / max(metrics.n, 1)):
        table.add_row("[yellow]mind", f"[yellow]{GUESSING}")
    if metrics.robust_accuracy is not None:
        how = f"PGD, L∞ {metrics.epsilon:g} of the range, {metrics.steps} steps"
        table.add_row("under attack", f"{metrics.robust_accuracy:.1%} ({how})")
    served = f"epoch {epoch}" if epoch else "not released; `--release` has workers serve it"
    table.add_row("serves", served)
    return table


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
            f"steadily where {share:.1%} of a client's inputs are attacks; fewer late, or never"
            if share < 1
            else "none: with so few clean inputs no client is ever accused"
        ),
    )
