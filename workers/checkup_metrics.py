"""What the metrics of the processes here tell a check-up: whether more comes than was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from workers import probing
from workers.findings import Finding

TRAFFIC = "nnsec_evidence_traffic"


async def budget(folder: Path) -> Sequence[Finding]:
    """Whether `[budget]` expects as much as comes; nothing where no process here judges."""
    found: dict[tuple[str, str], float] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        for place in probing.places(folder / "run"):
            text = await probing.metrics(session, place.address)
            for family in text_string_to_metric_families(text):
                for sample in family.samples if family.name == TRAFFIC else ():
                    about = (sample.labels["model"], sample.labels["kind"].replace("_", " "))
                    found[about] = max(found.get(about, 0.0), sample.value)
    more = [_more(*about, value) for about, value in found.items() if value > 1]
    if found and not more:
        return [Finding("budget", "ok", "no more comes in a day than it expects")]
    return more


def _more(model: str, kind: str, value: float) -> Finding:
    text = f"{model}: {value:.3g} times the {kind} that a day expects, so evidence takes longer"
    key = "samples" if kind == "samples" else "inputs"
    return Finding("budget", "warn", text, f"raise [budget] expected_{key}_per_day")
