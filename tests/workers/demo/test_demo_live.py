"""What the demo shows while it runs, and says at its end."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from schemas.model_statement import ModelStatement
from workers.demo import report
from workers.demo.ledger import INPUTS, SAMPLES, Ledger, SentInput, SentSample
from workers.demo.live import Live
from workers.demo.summary import Summary, summarise

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def statement(epoch: int, version: int, reason: str) -> ModelStatement:
    return ModelStatement(
        model="digits", epoch=epoch, phase="activate", version=version, digest="", reason=reason,
        issued=NOW, expires=NOW,
    )  # fmt: skip


def drawn(live: Live) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(live.render(0.0))
    return captured.get()


def empty() -> Summary:
    return summarise(Ledger(), dataset="digits", seconds=1.0, predict=lambda _, x: x)


def last_words(*, running: bool) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        report.say(console, empty(), (), ".nnsec/demo", running=running)
    return captured.get()


def test_dead_letters_are_counted_where_they_belong() -> None:
    """Those of samples stand beside the samples, as in the table at the end."""
    ledger = Ledger()
    for offset in range(3):
        ledger.inputs[INPUTS, 0, offset] = SentInput("malformed", offset, "app", -1, 0.0)
    ledger.samples[SAMPLES, 0, 0] = SentSample("malformed", "s", 0.0)
    ledger.dead = dict.fromkeys([*ledger.inputs, *ledger.samples], "SchemaError value")
    inputs, samples = drawn(Live(ledger, 1)).split("samples")
    assert "3 dead letters" in inputs
    assert "1 dead letters" in samples


def test_every_swap_is_an_event_with_its_reason() -> None:
    """Which checkpoint serves is never left for the reader to guess; the first is no event."""
    said: list[str] = []
    ledger = Ledger()
    live = Live(ledger, 1, said.append)
    swaps = [(1, 1, "the demo begins"), (2, 3, "promote: promote from 1 to 3")]
    for epoch, version, reason in swaps:
        ledger.models["digits"] = statement(epoch, version, reason)
        for _ in range(2):
            picture = drawn(live)
    assert said == ["  checkpoint 3 serves: promote from 1 to 3"]
    assert said[0].strip() in picture


def test_the_last_words_say_whether_it_runs() -> None:
    """What still runs is not to be started again, and it says how to end it."""
    assert "The monitor is running; Ctrl-C ends it" in last_words(running=True)
    assert "demo --keep-running" not in last_words(running=True)
    assert "demo --keep-running" in last_words(running=False)


def test_commands_are_told_as_they_can_be_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By path where the environment is not active, by name where it is."""
    own = tmp_path / ".venv" / "bin" / "nnsec"
    own.parent.mkdir(parents=True)
    own.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(own.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert "\n  .venv/bin/nnsec --config .nnsec/demo/nnsec.toml " in last_words(running=True)
    monkeypatch.setenv("PATH", str(own.parent))
    assert "\n  nnsec --config .nnsec/demo/nnsec.toml " in last_words(running=True)
