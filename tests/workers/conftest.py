"""The command line, run in this process against the services of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnsec.settings import Settings
from workers.cli import app


class Outcome:
    """How a command ended: what it printed, and its exit status or its error."""

    def __init__(self, status: int, out: str, err: str, error: BaseException | None) -> None:
        self.status, self.out, self.err, self.error = status, out, err, error


Nnsec = Callable[..., Outcome]


def variables(settings: Settings) -> dict[str, str]:
    """The variables that give a command these settings; JSON text and arrays are TOML too."""
    kafka, names = settings.kafka, {}
    for name in ("bootstrap_servers", "prefix", "session_timeout", "commit_interval", "declare"):
        names[f"NNSEC_KAFKA__{name.upper()}"] = json.dumps(getattr(kafka, name))
    for name in ("inputs", "control"):
        names[f"NNSEC_KAFKA__PARTITIONS__{name.upper()}"] = str(getattr(kafka.partitions, name))
    for table, name in (("redis", "url"), ("redis", "prefix"), ("registry", "url")):
        value = getattr(getattr(settings, table), name)
        names[f"NNSEC_{table.upper()}__{name.upper()}"] = json.dumps(value)
    for name in ("release_keys", "operator_keys"):
        value = json.dumps(list(getattr(settings.trust, name)))
        names[f"NNSEC_TRUST__{name.upper()}"] = value
    for model, spec in settings.models.items():
        prefix = f"NNSEC_MODELS__{model.upper()}__"
        names[f"{prefix}ARCHITECTURE"] = json.dumps(spec.architecture)
        names[f"{prefix}INPUT__SHAPE"] = json.dumps(list(spec.input.shape))
        names[f"{prefix}INPUT__RANGE"] = json.dumps(list(spec.input.range))
        names[f"{prefix}INPUT__DTYPE"] = spec.input.dtype
        names[f"{prefix}DEVICE"] = spec.device
    return names


@pytest.fixture
def nnsec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nnsec:
    """Run ``nnsec`` with words and settings, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, settings: Settings | None = None) -> Outcome:
        environ = variables(settings) if settings else {}
        found = CliRunner().invoke(app, list(words), env=environ)
        error = None if isinstance(found.exception, SystemExit) else found.exception
        return Outcome(found.exit_code, found.stdout, found.stderr, error)

    return run
