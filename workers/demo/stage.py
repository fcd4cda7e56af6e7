"""What stands before the demo begins: keys, configuration, registry, the first checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nnsec.errors import ConfigError
from nnsec.settings import ModelTable, Settings

FOLDER = Path(".nnsec/demo")
MIN_SAMPLES = 392
"""Accepted samples from which on the trainer makes the second checkpoint."""
EPOCHS = 3
SESSION_SECONDS = 6.0
INPUTS_A_DAY = 10_000
SAMPLES_A_DAY = 2_000
"""What the budget is spread over: about what a day of the demo's own size would bring."""


def clear(folder: Path = FOLDER) -> Path:
    """Make the demo's folder anew; what an earlier run left there goes.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{error}; work in a folder that you can write to") from error
    return folder.resolve()


def configuration(
    folder: Path, settings: Settings, name: str, spec: ModelTable, seed: int
) -> dict[str, Any]:
    """The tables of the demo's ``nnsec.toml``, with the services of ``settings``."""
    return {
        "kafka": {
            # The embedded broker holds the first member of a group back for half of it.
            "session_timeout": SESSION_SECONDS,
            **settings.kafka.model_dump(mode="json", exclude_defaults=True),
            "default_model": name, "partitions": {"inputs": 4, "control": 1},
        },
        "redis": settings.redis.model_dump(mode="json", exclude_defaults=True),
        "registry": {"url": str(folder / "registry")},
        "budget": {
            "false_subjects_per_day": 1.0, "expected_inputs_per_day": INPUTS_A_DAY,
            "expected_samples_per_day": SAMPLES_A_DAY,
        },
        "models": {name: spec.model_dump(mode="json", exclude_defaults=True)},
        "policy": {
            "poisoning": {
                "severity": "medium", "actions": ["quarantine", "rollback"], "approval": "none",
            }
        },
        "trust": {
            "release_keys": [str(folder / "release.pub")],
            "operator_keys": [str(folder / "operator.pub")],
        },
        "remediation": {"release_key": str(folder / "release")},
        "trainer": {
            "operator_key": str(folder / "operator"), "release_key": str(folder / "release"),
            "reference": str(folder / "reference-{model}.npz"), "min_samples": MIN_SAMPLES,
            "epochs": EPOCHS, "seed": seed,
        },
    }  # fmt: skip


def to_toml(tables: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Write nested tables of plain values; TOML takes JSON's strings, numbers and lists.

    >>> print(to_toml({"kafka": {"prefix": "p.", "partitions": {"inputs": 4}}}))
    [kafka]
    prefix = "p."
    <BLANKLINE>
    [kafka.partitions]
    inputs = 4
    """
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    own = "\n".join([f"[{'.'.join(path)}]", *lines]) if lines else ""
    nested = [to_toml(v, (*path, k)) for k, v in tables.items() if isinstance(v, dict)]
    return "\n\n".join(part for part in (own, *nested) if part)
