from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nnsec.adapters.clients import outage
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.errors import NNSecError
from streams import roles
from workers.cli import _fail, app
from workers.commands import topics

PROGRAM = [sys.executable, "-c", "from workers.cli import main; main()"]


TREE: Any = typer.main.get_command(app)


def leaves(command: Any = TREE, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, (*path, name))


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
    assert wrong.returncode == 2
    assert "there are" in wrong.stderr


def test_a_wrong_configuration_ends_with_2(tmp_path: Path) -> None:
    """An unknown key is named with the nearest known one."""
    (tmp_path / "nnsec.toml").write_text("[kafka]\nprefx = 'a.'\n")
    wrong = run("topics", folder=tmp_path)
    assert wrong.returncode == 2
    assert "prefix" in wrong.stderr


def test_an_error_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """What it quotes of others is neither markup nor an order to the terminal."""
    with pytest.raises(SystemExit, match="1"):
        _fail(NNSecError("first [/red]\x1b[2J\nsecond"), 1)
    assert capsys.readouterr().err == "nnsec: first [/red]\N{REPLACEMENT CHARACTER}[2J\nsecond\n"


def test_help_needs_no_configuration(tmp_path: Path) -> None:
    """Help is shown though the configuration is wrong, on every level."""
    (tmp_path / "nnsec.toml").write_text("[kafka]\nprefx = 'a.'\n")
    for words in (("--help",), ("topics", "-h"), ("send", "inputs", "--help")):
        shown = run(*words, folder=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "Usage" in shown.stdout


def test_a_command_that_does_not_exist_ends_with_2(tmp_path: Path) -> None:
    """Without words there is help; a wrong word is told."""
    assert "No such command" in run("alarms", folder=tmp_path).stderr
    assert run("alarms", folder=tmp_path).returncode == 2
    assert "nnsec" in run(folder=tmp_path).stdout


LIGHT = """
import sys
from typer.testing import CliRunner
from workers.cli import app
sys.argv = ["nnsec", "--help"]
for words in (["--help"], ["topics"], ["schema", "alert"], ["doctor", "--json"],
              ["alerts", "--help"], ["incidents", "list", "--help"], ["send", "inputs", "--help"]):
    CliRunner().invoke(app, words)
print(sorted({"torch", "sklearn", "scipy", "faust", "river", "pandas"} & set(sys.modules)))
"""


def test_commands_that_only_look_start_at_once(tmp_path: Path) -> None:
    """Neither torch nor anything else that takes seconds is imported to show a table."""
    shown = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=True, env={"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert shown.stdout.strip() == "[]", shown.stdout


@pytest.mark.parametrize("words", list(leaves()), ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(words: tuple[str, ...]) -> None:
    """Each level of the tree answers --help with its own first sentence."""
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    command: Any = TREE
    for word in words:
        command = command.commands[word]
    first = (command.help or "").split()
    assert len(first) >= 2, "no help"
    assert " ".join(first[:3]) in " ".join(shown.stdout.replace("\n", " ").split())


@pytest.mark.parametrize(
    "words", [("bench", "suite"), ("bench", "detection"), ("bench", "delivery"), ("demo",)]
)
def test_figures_that_cannot_be_written_are_told_before_the_run(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """Not after minutes of measuring."""
    refused = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "nowhere" / "x")])
    assert isinstance(refused.exception, ConfigError)
    assert "nowhere/x cannot be written" in str(refused.exception)


@pytest.mark.parametrize(
    "words",
    [("bench", "suite", "--seed"), ("bench", "detection", "--first"), ("demo", "--seed"),
     ("checkpoint", "create", "--seed")],
)  # fmt: skip
def test_a_seed_is_not_negative(words: tuple[str, ...]) -> None:
    """It is told by the command line, not by a traceback of what draws."""
    refused = CliRunner().invoke(app, [*words, "-1"])
    assert refused.exit_code == 2
    assert "greater than or equal to 0" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("words", [("topics",), ("topics", "--json")])
def test_topics_are_listed(words: tuple[str, ...], tmp_path: Path) -> None:
    """The table names each topic with the configured prefix."""
    shown = run(*words, folder=tmp_path, NNSEC_KAFKA__PREFIX="x.", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "x.inference.inputs" in shown.stdout


def test_the_version_is_shown(tmp_path: Path) -> None:
    """Though the configuration is wrong."""
    (tmp_path / "nnsec.toml").write_text("[kafka]\nprefx = 'a.'\n")
    shown = run("--version", folder=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"nnsec {metadata.version('nnsec')}\n")


def test_the_roles_are_in_the_help() -> None:
    """All that there are, since nothing else lists them before a wrong one is named."""
    (role,) = [one for one in TREE.commands["stream"].params if one.name == "role"]
    *first, last = roles.ROLES
    assert role.help.startswith(f"{', '.join(first)} or {last};")


def test_a_broker_that_is_away_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library's own lines, many a second, go through what says it once."""
    library = logging.getLogger("aiokafka")
    monkeypatch.setattr(library, "handlers", [])
    heard: list[Any] = []

    async def declare(*_: Any, **__: Any) -> dict[str, Any]:
        heard.extend(library.handlers)
        return {}

    monkeypatch.setattr(topics, "declare", declare)
    assert CliRunner().invoke(app, ["topics", "--declare"]).exit_code == 0
    assert heard == [outage]


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


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--json", "/nowhere/x.json"), "/nowhere"), (("--json", "."), "."), (("--seed", "-1"), "0")],
)
def test_the_demo_refuses_before_it_starts(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """What could only fail after the whole run, or with a traceback, is told at once."""
    done = run("demo", *words, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
