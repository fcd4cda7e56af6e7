"""The configuration: one file, ``nnsec.toml``, overridden by ``NNSEC_…`` variables."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nnsec.errors import ConfigError

DEFAULT_FILE = "nnsec.toml"
ENV_PREFIX = "NNSEC_"


class Table(BaseModel):
    """A table of the file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Partitions(Table):
    """Partition counts that stand for every 12 and every 6 of the topic table."""

    inputs: Annotated[int, Field(ge=1)] = 12
    control: Annotated[int, Field(ge=1)] = 6


class Kafka(Table):
    """How to reach Kafka, and how to use it. Times in seconds."""

    bootstrap_servers: str = "embedded"
    prefix: str = "nnsec."
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str = ""
    sasl_password_file: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    declare: bool = True
    start_at: str = "latest"
    default_model: str = ""
    identity_header: str = ""
    """Header whose value outranks ``parameters.client``; ``key`` for the record key."""
    partitions: Partitions = Partitions()
    commit_interval: float = 0.5
    session_timeout: float = 10.0
    drain_seconds: float = 20.0
    fetch_max_wait_ms: int = 10
    """10 suits the embedded broker, which sleeps half of it; Apache Kafka answers at once."""
    max_batch: int = 512
    max_message_bytes: int | None = None


class Redis(Table):
    """The store of the view."""

    url: str = "embedded"
    prefix: str = "nnsec:"


class Registry(Table):
    """Where checkpoints are: a folder or any fsspec URL."""

    url: str = ".nnsec/registry"


class Budget(Table):
    """Falsely accused subjects, per model and day."""

    false_subjects_per_day: Annotated[float, Field(gt=0)] = 1.0
    expected_inputs_per_day: Annotated[float, Field(gt=0)] = 100_000.0
    expected_samples_per_day: Annotated[float, Field(gt=0)] = 10_000.0
    max_clients: Annotated[int, Field(ge=1)] = 1_000_000


class Input(Table):
    """One input of a model, without the batch axis."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"] = "uint8"
    range: tuple[float, float] = (0.0, 255.0)
    name: str = "input"


class ModelTable(Table):
    """One monitored model."""

    architecture: str
    input: Input
    features: str = "auto"
    classes: tuple[str, ...] = ()
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    device: str = "auto"
    detectors: tuple[str, ...] = ()
    """Names to use; empty for all that fit the input."""


Approval = Literal["none", "required"]


class PolicyTable(Table):
    """What to do about incidents of one family from a severity upwards."""

    severity: Literal["info", "low", "medium", "high", "critical"] = "high"
    actions: tuple[str, ...] = ()
    approval: Approval = "required"


class Serving(Table):
    """How a rollback reaches the model that serves."""

    hook: str = ""
    timeout: float = 60.0


class Trust(Table):
    """Public keys, as PEM files."""

    release_keys: tuple[str, ...] = ()
    operator_keys: tuple[str, ...] = ()


class Remediation(Table):
    """How the remediation worker acts."""

    release_key: str = ""
    """Private key (PEM file) that signs model statements."""
    dry_run: bool = False
    revoke_window_days: float = 7.0
    quiet_seconds: float = 600.0
    approval_timeout: float = 3600.0
    prepare_timeout: float = 10.0


class Trainer(Table):
    """How the trainer learns from ``training.accepted``."""

    operator_key: str = ""
    """Private key (PEM file) that signs the order to promote what was trained."""
    release_key: str = ""
    """Private key (PEM file) that signs checkpoints."""
    reference: str = ""
    """Clean data (npz: x, y) held apart, on which detectors are fitted; ``{model}`` is replaced."""
    min_samples: Annotated[int, Field(ge=1)] = 200
    """Accepted samples, not learned from yet, from which on a new checkpoint is trained."""
    epochs: Annotated[int, Field(ge=1)] = 5
    adversarial_epsilon: Annotated[float, Field(ge=0, le=1)] = 0.1
    """L∞ bound of adversarial training, of the input range; 0 for none."""
    seed: int = 0


class Http(Table):
    """Where ``/livez``, ``/readyz`` and ``/metrics`` are served."""

    listen: str = "127.0.0.1:0"


class Limits(Table):
    """Bounds on what users send."""

    depth: int = 32
    rows: int = 65_536
    headers: int = 128
    bytes: int = 1024 * 1024


class Settings(Table):
    """The whole configuration; a process reads only the tables that it uses."""

    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    registry: Registry = Registry()
    budget: Budget = Budget()
    models: dict[str, ModelTable] = {}
    policy: dict[str, PolicyTable] = {}
    serving: Serving = Serving()
    trust: Trust = Trust()
    remediation: Remediation = Remediation()
    trainer: Trainer = Trainer()
    http: Http = Http()
    limits: Limits = Limits()


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
        if name.startswith(ENV_PREFIX) and "__" in name:
            _override(values, [part.lower() for part in name[len(ENV_PREFIX) :].split("__")], text)
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
