"""The demo's last words: what was sent against what was found, and where to look next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

Summary = Mapping[str, Any]


def share(part: float, whole: float) -> str:
    """A part of a whole as people read it.

    >>> share(1, 3)
    '1 of 3 (33.3 %)'
    """
    return f"{part:g} of {whole:g} ({100 * part / whole:.1f} %)" if whole else "none"


def result(summary: Summary) -> RenderableType:
    """The table of what was sent against what was found."""
    inputs, samples, evasion = summary["inputs"], summary["samples"], summary["evasion"]
    poisoning, drift, rollback = summary["poisoning"], summary["drift"], summary["rollback"]
    table = Table("what was sent", "what was found", "where from")
    table.add_row(
        f"{inputs['sent']} inputs",
        f"{inputs['scored']} scores, {inputs['dead_lettered']} dead letters, {inputs['lost']} lost",
        "scores, dead-letters",
    )
    table.add_row(
        f"{evasion['attack_inputs']} inputs of an attacker that fooled the model",
        f"{share(evasion['attack_flagged'], evasion['attack_inputs'])} flagged",
        "scores",
    )
    for epsilon, (flagged, sent) in evasion["by_epsilon"].items():
        table.add_row(f"  of them with ε = {epsilon}: {sent}", share(flagged, sent), "")
    table.add_row(
        f"{evasion['benign_inputs']} honest inputs before the drift",
        f"{share(evasion['benign_flagged'], evasion['benign_inputs'])} flagged",
        "scores",
    )
    table.add_row(
        f"{evasion['honest_clients']} honest clients",
        f"{evasion['honest_clients_accused']} accused",
        "alerts",
    )
    table.add_row(
        f"{samples['sent']} training samples",
        f"{samples['accepted']} accepted, {samples['quarantined']} quarantined, "
        f"{samples['dead_lettered']} dead letters, {samples['lost']} lost",
        "training.accepted, training.quarantine",
    )
    table.add_row(
        f"{poisoning['poison_samples']} of them poison",
        f"{share(poisoning['poison_quarantined_or_revoked'], poisoning['poison_samples'])} "
        "kept out or revoked",
        "training.revocations",
    )
    table.add_row(
        f"  of that loud: {poisoning['loud_samples']}",
        f"{share(poisoning['loud_caught_by_sample'], poisoning['loud_samples'])} "
        "caught one by one, before the verdict on the source",
        "training.quarantine",
    )
    table.add_row(
        f"{poisoning['clean_samples']} samples of honest sources",
        f"{share(poisoning['clean_quarantined'], poisoning['clean_samples'])} quarantined",
        "training.quarantine",
    )
    table.add_row(
        f"a slow drift from input {drift['started_at_input']} on",
        f"found at input {drift['alarmed_at_input']}, {drift['false_alarms']} false alarms"
        if drift["alarmed_at_input"]
        else f"not found, {drift['false_alarms']} false alarms",
        "alerts",
    )
    table.add_row(
        "a checkpoint that learned from poison",
        f"rolled back from {rollback['from']} to {rollback['to']} in {rollback['seconds']:g} s"
        if rollback["verified"]
        else "[red]not rolled back",
        "models, incidents",
    )
    return Group(table, _incidents(summary["incidents"]), _latency(summary))


def _incidents(incidents: Sequence[Summary]) -> RenderableType:
    table = Table("incident", "threat", "state", "actions")
    table.columns[0].min_width = 36  # the id is what commands ask for
    for one in incidents:
        actions = ", ".join(f"{a['action']}: {a['outcome']}" for a in one["actions"])
        table.add_row(one["id"], one["threat"], one["state"], escape(actions))
    return table


def _latency(summary: Summary) -> str:
    times = summary["latency_ms"]
    return (
        f"From an input to its score: half within {times['p50']:g} ms, 95 % within "
        f"{times['p95']:g} ms, 99 % within {times['p99']:g} ms. From the first attack input to the "
        f"first alert: {summary['seconds_to_first_alert']:g} s. In all: "
        f"{summary['seconds_total']:g} s."
    )


def program() -> str:
    """How to call this ``nnsec`` from here: by its path, unless its environment is active."""
    own = Path(sys.executable).with_name("nnsec")
    if shutil.which("nnsec") == str(own) or not own.exists():
        return "nnsec"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def say(
    console: Console, summary: Summary, problems: Sequence[str], folder: str, *, running: bool
) -> None:
    """Print the result, what went wrong, and where to look next.

    Parameters
    ----------
    running:
        Whether the monitor stays up now.
    """
    console.print(result(summary))
    for problem in problems:
        console.print(f"[red]{escape(problem)}")
    nnsec = program()
    state = (
        "The monitor is running; Ctrl-C ends it. In another terminal, in this folder:"
        if running
        else f"To try it yourself, keep it running: {nnsec} demo --keep-running. Then, in another "
        "terminal:"
    )
    config = f"{folder}/nnsec.toml"
    console.print(
        f"\nLogs of every process: .nnsec/run. The configuration: {config}.\n{state}\n"
        f"  {nnsec} --config {config} alerts --from-beginning\n"
        f"  {nnsec} --config {config} incidents list\n"
        "README.md shows a producer of your own in 15 lines.",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
