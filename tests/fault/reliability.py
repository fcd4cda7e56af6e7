"""docs/reliability.md, written from what runs have shown: promise, figures, command.

With ``NNSEC_RELIABILITY`` naming a folder each test of a promise leaves its figures there, and
``python -m tests.fault.reliability FOLDER`` writes the page from them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = "NNSEC_RELIABILITY"
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: figures -->", "<!-- end: figures -->"
PROMISES = {
    1: "`kill -9` of the stream process",
    2: "`kill -9` of the broker",
    3: "broker stopped (SIGSTOP)",
    4: "a second stream process added and removed under load",
    5: "`kill -9` of the remediation worker at each of six points",
    6: "Redis killed",
    7: "Redis away",
    8: "a remediation worker paused past its lease and resumed",
    12: "steady load at half of saturation, then a burst of over twice saturation",
    13: "one worker and two on the same backlog",
    14: "alerts over 50 pairs of model and family, a correlator killed",
    15: "distinct clients",
    16: "drift on data that do not drift; saved and restored in mid-stream",
    17: "mutated records",
    18: "one record in ten makes the model or a detector raise",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What one run showed of one promise."""

    promise: int
    profile: str
    broker: str
    seed: int
    figures: dict[str, Any]
    seconds: float
    test: str


def note(shown: Shown) -> None:
    """Print what was shown, with the seed, and keep it where that is asked for."""
    print(f"promise {shown.promise} ({shown.profile}, seed {shown.seed}): {shown.figures}")  # noqa: T201 - shown with -s or on failure
    folder = os.environ.get(FOLDER)
    if folder:
        path = Path(folder) / f"{shown.promise}-{shown.profile}-{shown.broker.split()[0]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(shown), indent=1) + "\n", "utf-8")


def table(runs: Sequence[Shown]) -> str:
    """Write the runs as a table and the commands that repeat them.

    >>> run = Shown(1, "short", "Tansu", 7, {"lost": 0, "kills": 3}, 9.5, "t.py::t[short]")
    >>> print(table([run]))
    | promise | profile | broker | figures | seconds |
    |---|---|---|---|---|
    | 1. `kill -9` of the stream process | short | Tansu | lost 0, kills 3 | 9.5 |
    <BLANKLINE>
    Seeds and commands:
    <BLANKLINE>
    - 1, short: seed 7, `.venv/bin/pytest -m "" "t.py::t[short]"`
    """
    rows = ["| promise | profile | broker | figures | seconds |", "|---|---|---|---|---|"]
    commands = []
    for run in sorted(runs, key=lambda run: (run.promise, run.profile, run.broker)):
        figures = ", ".join(f"{name.replace('_', ' ')} {v}" for name, v in run.figures.items())
        rows.append(
            f"| {run.promise}. {PROMISES[run.promise]} | {run.profile} | {run.broker} | "
            f"{figures} | {run.seconds:g} |"
        )
        commands.append(
            f"- {run.promise}, {run.profile}: seed {run.seed}, "
            f'`.venv/bin/pytest -m "" "{run.test}"`'
        )
    return "\n".join([*rows, "", "Seeds and commands:", "", *commands])


def write(folder: Path, page: Path = PAGE) -> None:
    """Put what runs left in a folder between the marks of the page."""
    runs = [Shown(**json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]
    before, rest = page.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    where = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    found = f"Measured on {when} ({where}):\n\n{table(runs)}"
    page.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
