from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnsec.settings import Settings

PROGRAM = [sys.executable, "-c", "from workers.cli import main; main()"]


def run(*arguments: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])} | environ,
    )  # fmt: skip


def test_schema_is_printed(tmp_path: Path) -> None:
    """A program can read an event's JSON Schema from standard output."""
    assert json.loads(run("schema", "alert", folder=tmp_path).stdout)["title"] == "Alert"
    assert "incident" in run("schema", folder=tmp_path).stdout.split()
    wrong = run("schema", "alarm", folder=tmp_path)
    assert wrong.returncode == 1
    assert "there are" in wrong.stderr


def test_a_wrong_configuration_ends_with_2(tmp_path: Path) -> None:
    """An unknown key is named with the nearest known one."""
    (tmp_path / "nnsec.toml").write_text("[kafka]\nprefx = 'a.'\n")
    wrong = run("topics", folder=tmp_path)
    assert wrong.returncode == 2
    assert "prefix" in wrong.stderr


@pytest.mark.parametrize("words", [("topics",), ("topics", "--json")])
def test_topics_are_listed(words: tuple[str, ...], tmp_path: Path) -> None:
    """The table names each topic with the configured prefix."""
    shown = run(*words, folder=tmp_path, NNSEC_KAFKA__PREFIX="x.", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "x.inference.inputs" in shown.stdout


def test_topics_are_declared(settings: Settings, tmp_path: Path) -> None:
    """With --declare each topic gets the identity of its log."""
    kafka = settings.kafka
    shown = run(
        "topics", "--declare", "--json", folder=tmp_path, NNSEC_KAFKA__PREFIX=kafka.prefix,
        NNSEC_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        NNSEC_KAFKA__PARTITIONS="{inputs = 2, control = 1}",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    logs = [row["log"] for row in json.loads(shown.stdout)]
    assert len(set(logs)) == len(logs) > 10
