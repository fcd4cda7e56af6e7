"""The whole path as a user sees it: the demo as a process, on embedded services and on Kafka."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from schemas.threats import family

SECONDS = 240
"""Far more than it takes: other tests run beside it."""


def demo(folder: Path, **environ: str) -> dict[str, Any]:
    """Run it in a folder of its own; returns its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "demo", "--json", str(folder / "summary.json")],
        cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return summary


def check(summary: dict[str, Any]) -> None:
    """Hold what does not hang on luck or on the load of the machine."""
    assert summary["inputs"]["lost"] == summary["samples"]["lost"] == 0
    assert summary["inputs"]["dead_lettered"] == 30
    evasion, poisoning = summary["evasion"], summary["poisoning"]
    assert evasion["attack_flagged"] >= 0.9 * evasion["attack_inputs"] > 0
    assert all(flagged >= 0.7 * sent for flagged, sent in evasion["by_epsilon"].values())
    assert evasion["benign_flagged"] <= 0.02 * evasion["benign_inputs"]
    assert poisoning["poison_quarantined_or_revoked"] >= 0.9 * poisoning["poison_samples"] > 0
    assert summary["drift"]["alarmed_at_input"] > summary["drift"]["started_at_input"] > 0
    assert summary["drift"]["false_alarms"] == 0
    families = [family(one["threat"]) for one in summary["incidents"]]
    assert sorted(families) == ["drift", "evasion", "poisoning"]
    assert (summary["rollback"]["from"], summary["rollback"]["to"]) == ("2", "1")
    poisoned = next(i for i in summary["incidents"] if family(i["threat"]) == "poisoning")
    assert [(a["action"], a["outcome"]) for a in poisoned["actions"]] == [
        ("quarantine", "done"), ("rollback", "done"),
    ]  # fmt: skip


@pytest.mark.timeout(SECONDS + 30)
def test_the_demo_finds_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Attacked in four ways on the embedded services, it loses nothing and misses nothing."""
    check(demo(tmp_path))
    assert {entry.name for entry in tmp_path.iterdir()} == {".nnsec", "summary.json"}


@pytest.mark.kafka
@pytest.mark.timeout(SECONDS + 60)
def test_the_same_against_apache_kafka(tmp_path: Path, kafka: str, valkey: str) -> None:
    """On a real Kafka, with topics that the project declares itself and compaction on."""
    name = uuid4().hex[:8]
    check(
        demo(
            tmp_path,
            NNSEC_KAFKA__BOOTSTRAP_SERVERS=kafka,
            NNSEC_KAFKA__PREFIX=f"demo-{name}.",
            NNSEC_REDIS__URL=valkey,
            NNSEC_REDIS__PREFIX=f"demo-{name}:",
        )
    )
