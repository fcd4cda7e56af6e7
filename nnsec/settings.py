"""The configuration: one file, ``nnsec.toml``, overridden by ``NNSEC_…`` variables."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nnsec.errors import ConfigError
from nnsec.tables import (
    Approval,
    Budget,
    Http,
    Input,
    Kafka,
    Limits,
    ModelTable,
    Partitions,
    PolicyTable,
    Redis,
    Registry,
    Remediation,
    Serving,
    Settings,
    Table,
    Trainer,
    Trust,
)

__all__ = [
    "Approval", "Budget", "Http", "Input", "Kafka", "Limits", "ModelTable", "Partitions",
    "PolicyTable", "Redis", "Registry", "Remediation", "Serving", "Settings", "Table", "Trainer",
    "Trust", "load", "parse",
]  # fmt: skip

DEFAULT_FILE = "nnsec.toml"
ENV_PREFIX = "NNSEC_"


def load(path: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration.

    Parameters
    ----------
    path:
        The file; default ``NNSEC_CONFIG``, then ``./nnsec.toml``, then no file.
    environ:
        Variables: ``NNSEC_KAFKA__BOOTSTRAP_SERVERS`` overrides ``[kafka] bootstrap_servers``.

    Raises
    ------
    ConfigError
        Naming the key, and the nearest known one where there is such.
    """
    values: dict[str, Any] = {}
    chosen = (
        path
        or environ.get("NNSEC_CONFIG")
        or (DEFAULT_FILE if Path(DEFAULT_FILE).exists() else None)
    )
    if chosen:
        try:
            values = tomllib.loads(Path(chosen).read_text("utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"no configuration file {chosen}; name one with --config") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{chosen} cannot be read: {error}") from error
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            _take(values, name.removeprefix(ENV_PREFIX), text)
    return parse(values)


def parse(values: Mapping[str, Any]) -> Settings:
    """Check values that came from anywhere.

    Raises
    ------
    ConfigError
        As `load`.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _take(values: dict[str, Any], name: str, text: str) -> None:
    """Take one variable, by its name without the prefix; those without ``__`` mean other things."""
    if "__" in name:
        _override(values, [part.lower() for part in name.split("__")], text)
        return
    table, _, key = name.lower().partition("_")
    if key and table in Settings.model_fields:
        raise ConfigError(
            f"unknown variable {ENV_PREFIX}{name}; two underscores stand between table and key: "
            f"{ENV_PREFIX}{table.upper()}__{key.upper()}"
        )


def _override(values: dict[str, Any], path: list[str], text: str) -> None:
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    table = values
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{part} is a value, not a table, so {'__'.join(path)} cannot be set")
    table[path[-1]] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known(item["loc"][:-1]), 1, 0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {where!r}{hint}")
        else:
            lines.append(f"{where}: {item['msg']}")
    return "; ".join(lines)


def _known(path: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at ``path`` knows."""
    table: Any = Settings
    for part in path:
        if isinstance(table, type) and issubclass(table, BaseModel) and part in table.model_fields:
            table = table.model_fields[str(part)].annotation
        else:  # a table of named tables: [models.NAME], [policy.FAMILY]
            table = next((a for a in getattr(table, "__args__", ()) if a is not str), None)
    return (
        list(table.model_fields) if isinstance(table, type) and issubclass(table, BaseModel) else []
    )
