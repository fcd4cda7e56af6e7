"""What the README says is what happens: its programs are run as they are printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import SPEC, MadeCheckpoint
from workers.cli import app
from workers.demo.stage import to_toml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
WHERE, *SHELL = (text for kind, text in BLOCKS if kind == "sh")
NAMES = ("producer", "consumer", "incidents")
SECONDS = 90.0


def wait_for(what: str, found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.2)
    pytest.fail(f"no {what} within {SECONDS:g} s")


def environ() -> dict[str, str]:
    mine = {name: text for name, text in os.environ.items() if not name.startswith("NNSEC_")}
    threads = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    return mine | threads | {"PYTHONPATH": str(ROOT)}


class Started:
    """Programs that run in a folder, their output in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str) -> None:
        self._start(name, [sys.executable, *words])

    def shell(self, name: str, text: str) -> None:
        """Run a block of the README as it stands, after the one that says where things are."""
        self._start(name, ["/bin/sh", "-ec", f"{WHERE}exec {text}"])

    def _start(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            self.processes[name] = subprocess.Popen(
                words, cwd=self.folder, env=environ(), stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()

    def nnsec(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "workers.cli", *words], cwd=self.folder, env=environ(),
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(30)


@pytest.fixture(scope="module")
def monitor(
    checkpoint: MadeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """`nnsec up` with a released checkpoint of the model `digits`."""
    tables = {
        "kafka": {"partitions": {"inputs": 2, "control": 1}, "session_timeout": 4.0},
        "registry": {"url": str(checkpoint.registry)},
        "models": {"digits": SPEC},
        "budget": {"expected_inputs_per_day": 10_000.0},
        "trust": {
            "release_keys": [f"{checkpoint.release_key}.pub"],
            "operator_keys": [f"{checkpoint.operator_key}.pub"],
        },
        "remediation": {"release_key": str(checkpoint.release_key)},
    }
    started = Started(tmp_path_factory.mktemp("readme"))
    (started.folder / "nnsec.toml").write_text(to_toml(tables))
    try:
        started.start("up", "-m", "workers.cli", "up")
        wait_for("message that names the model", lambda: re.search("digits", started.said("up")))
        started.nnsec(
            "checkpoint", "release", "--model", "digits", "--key", str(checkpoint.release_key)
        )
        wait_for("readiness", lambda: "Ctrl-C ends it" in started.said("up"))
        yield started
    finally:
        started.stop()


@pytest.mark.timeout(300)
def test_the_programs_of_the_readme_work(monitor: Started) -> None:
    """Its producer's inputs become an alert in its consumer, and an incident in its Redis."""
    (monitor.folder / ".venv").symlink_to(sys.prefix)
    for name, text in zip(NAMES, PROGRAMS, strict=True):
        (monitor.folder / f"{name}.py").write_text(text)
    blocks = dict(zip(NAMES, SHELL, strict=False))
    for name, text in blocks.items():
        assert text.startswith(f".venv/bin/python {name}.py")
    monitor.shell("producer", blocks["producer"])
    monitor.shell("consumer", blocks["consumer"])
    assert monitor.processes["producer"].wait(SECONDS) == 0, monitor.said("producer")
    line = wait_for("alert", lambda: monitor.said("consumer")).splitlines()[0]
    severity, threat, client, explanation = line.split(" ", 3)
    assert (threat, client) == ("evasion", "app-7"), line
    assert severity in {"low", "medium", "high", "critical"}
    assert len(explanation) > 20

    def told() -> list[str]:
        monitor.shell("incidents", blocks["incidents"])
        assert monitor.processes["incidents"].wait(SECONDS) == 0, monitor.said("incidents")
        return monitor.said("incidents").splitlines()

    change, now = wait_for("incident", told)
    incident, *words = change.split()
    assert words[:3] == ["new", "->", "open"]
    assert now.split() == [incident, "evasion", "open", "app-7"]
    shown = json.loads(monitor.nnsec("incidents", "list", "--json"))
    assert incident in json.dumps(shown)


@pytest.mark.timeout(300)
def test_the_canary_opens_and_closes_an_incident(
    monitor: Started, checkpoint: MadeCheckpoint
) -> None:
    """`nnsec send canary` tries the whole path: noise, an incident, an operator's dismissal."""
    key = ("--key", str(checkpoint.operator_key))
    for one in json.loads(monitor.nnsec("incidents", "list", "--json")):  # it would join them
        monitor.nnsec("incidents", "dismiss", one["id"], *key, "--reason", "the example")
    words = ("send", "canary", "--model", "digits", *key, "--json")
    told = json.loads(monitor.nnsec(*words))

    def state() -> str:
        shown = json.loads(monitor.nnsec("incidents", "show", told["incident"], "--json"))
        return str(shown["state"])

    wait_for("dismissal in Redis", lambda: state() == "dismissed")
    assert told["inputs"] >= 32
    assert 0 < told["opened_seconds"] < 60


def test_producer_is_short() -> None:
    """A producer takes about 15 lines."""
    lines = [line for line in PROGRAMS[0].splitlines() if line.strip()]
    assert len(lines) <= 16


def _nnsec(line: str) -> list[str]:
    match = re.match(r"(?:\$ )?(?:\.venv/bin/)?nnsec (.*)", line.strip())
    return shlex.split(match.group(1), comments=True) if match else []


def shown() -> list[tuple[str, list[str]]]:
    """Every command line of nnsec in a block of shell code, of all pages."""
    found = []
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in re.findall(
            r"```(?:sh|bash|shell|console)\n(.*?)```", page.read_text(), re.DOTALL
        ):
            lines = block.replace("\\\n", " ").splitlines()
            found.extend((page.name, words) for line in lines if (words := _nnsec(line)))
    return found


@pytest.mark.parametrize(("page", "words"), shown(), ids=str)
def test_commands_exist(page: str, words: list[str]) -> None:
    """Every command of nnsec that a page shows is in the command tree, with its options."""
    command: Any = typer.main.get_command(app)
    if words[0] == "--config":
        words = words[2:]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands") or set(words) <= {"--help", "-h"}
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= known | {"--help", "-h"}


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and of docs/ is a file that is there."""
    links = [
        (page, target)
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for target in re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", page.read_text())
    ]
    assert [f"{p.name}: {target}" for p, target in links if not (p.parent / target).exists()] == []
