"""The tables of ``nnsec.toml``: every key, its default, and what it means.

The docstrings below the keys are the text of docs/configuration.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


class Table(BaseModel):
    """A table of the file; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class Partitions(Table):
    """Partition counts that stand for every 12 and every 6 of the topic table."""

    inputs: Count = 12
    """Of topics that grow with the inputs."""
    control: Count = 6
    """Of topics about models."""


class Kafka(Table):
    """How to reach Kafka, and how to use it."""

    bootstrap_servers: str = "embedded"
    """``host:port,…``; or ``embedded``: what ``nnsec up`` or ``nnsec demo`` starts."""
    prefix: str = "nnsec."
    """Begins the name of every topic and consumer group."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How connections are secured."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How the user is authenticated."""
    sasl_username: str = ""
    """The user."""
    sasl_password_file: str = ""
    """File that holds the password; without one it is taken from ``NNSEC_SASL_PASSWORD``."""
    ssl_cafile: str = ""
    """Certificates that are trusted, in PEM; empty for the system's."""
    ssl_certfile: str = ""
    """The client's own certificate, in PEM."""
    ssl_keyfile: str = ""
    """Its private key, in PEM."""
    declare: bool = True
    """Whether missing topics are made; ``false`` only checks them."""
    start_at: str = "latest"
    """Where a group begins that never ran: ``latest``, ``earliest`` or an RFC 3339 time."""
    default_model: str = ""
    """The model of records that name none; empty: such a record is a dead letter."""
    identity_header: str = ""
    """Header whose value outranks ``parameters.client`` and ``source``; ``key`` for the key."""
    partitions: Partitions = Partitions()
    """Table of partition counts."""
    commit_interval: Annotated[float, Field(gt=0)] = 0.5
    """Seconds between commits: what is replayed after a kill."""
    session_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds after which the partitions of a silent process go to others."""
    drain_seconds: Seconds = 20.0
    """Seconds that a process takes at most to end in good order."""
    fetch_max_wait_ms: Annotated[int, Field(ge=0)] = 10
    """10 suits the embedded broker, which sleeps half of it; Apache Kafka answers at once, so that
    500 only saves requests."""
    max_batch: Count = 512
    """Records that are worked on together at most."""
    max_message_bytes: Count | None = None
    """Largest record of all topics; by default the broker's own."""


class Redis(Table):
    """The store of the view."""

    url: str = "embedded"
    """``redis://`` or ``rediss://``, its path being the database; or ``embedded``."""
    prefix: str = "nnsec:"
    """Begins every key."""


class Registry(Table):
    """Where checkpoints are."""

    url: str = ".nnsec/registry"
    """A folder, or any fsspec URL (``s3://…``, with its own package installed)."""


class Budget(Table):
    """How many subjects may be falsely accused, and what the budget is spread over."""

    false_subjects_per_day: Annotated[float, Field(gt=0)] = 1.0
    """Clients, sources or models, each with a threat, accused falsely per model and day."""
    expected_inputs_per_day: Annotated[float, Field(gt=0)] = 100_000.0
    """Inputs per model and day, over which the budget is spread; more make evidence slower."""
    expected_samples_per_day: Annotated[float, Field(gt=0)] = 10_000.0
    """Training samples per model and day, likewise."""
    max_clients: Count = 1_000_000
    """Clients that are remembered per model; beyond, the one with the least evidence goes."""


class Input(Table):
    """One input of a model, without the batch axis."""

    shape: tuple[Count, ...]
    """``[1, 8, 8]`` for images (channels, height, width), ``[30]`` for vectors."""
    dtype: Literal["uint8", "float32"] = "uint8"
    """On the wire: UINT8 or FP32."""
    range: tuple[float, float] = (0.0, 255.0)
    """Smallest and largest value allowed; scaled to 0 to 1 for the network."""
    name: str = "input"
    """The tensor that is read where a record has several."""


class ModelTable(Table):
    """One monitored model; ``[models.NAME]``."""

    architecture: str
    """``package.module:function`` that builds the network without weights."""
    input: Input
    """What it takes: ``{ shape = [1, 8, 8], dtype = "uint8", range = [0, 16] }``."""
    features: str = "auto"
    """The module whose output detectors see; ``auto`` for what goes into the last linear one."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in order; for reports, and to refuse labels that do not exist."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Inputs with a p-value of at most this are flagged."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``; ``auto`` for CUDA where it is present."""
    detectors: tuple[str, ...] = ()
    """Names to use; empty for all that fit the input."""


Approval = Literal["none", "required"]


class PolicyTable(Table):
    """What to do about incidents of one family; ``[policy.FAMILY]``."""

    severity: Literal["info", "low", "medium", "high", "critical"] = "high"
    """From which severity upwards."""
    actions: tuple[str, ...] = ()
    """``quarantine``, ``rollback``; empty for none."""
    approval: Approval = "required"
    """``none`` acts at once, within the guards; ``required`` waits for a person."""


class Serving(Table):
    """How a rollback reaches the model that serves."""

    hook: str = ""
    """Command or URL that is given the signed statement and answers with the digest now served."""
    timeout: Seconds = 60.0
    """Seconds until its answer is overdue."""


class Trust(Table):
    """Public keys that are trusted, as PEM files."""

    release_keys: tuple[str, ...] = ()
    """Of those who release checkpoints and say what serves."""
    operator_keys: tuple[str, ...] = ()
    """Of those who give commands."""


class Remediation(Table):
    """How the remediation worker acts."""

    release_key: str = ""
    """Private key (PEM file) that signs model statements."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""
    revoke_window_days: Seconds = 7.0
    """Days before the first evidence from which a quarantined source's samples are revoked."""
    quiet_seconds: Seconds = 600.0
    """Seconds without evidence after which an incident is resolved."""
    approval_timeout: Seconds = 3600.0
    """Seconds after which an action that waits for a person is denied."""
    prepare_timeout: Seconds = 10.0
    """Seconds that stream workers have to load what they will swap to."""


class Trainer(Table):
    """How the trainer learns from ``training.accepted``."""

    operator_key: str = ""
    """Private key (PEM file) that signs the order to promote what was trained."""
    release_key: str = ""
    """Private key (PEM file) that signs checkpoints."""
    reference: str = ""
    """Clean data (npz: x, y) held apart, on which detectors are fitted; ``{model}`` is replaced.
    Some are learned beside the samples."""
    min_samples: Count = 200
    """Accepted samples, not learned from yet, from which on a new checkpoint is trained."""
    epochs: Count = 5
    """Passes over them."""
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """How far the accuracy of what was trained may be under that of the checkpoints it comes from,
    on reference data held out; what loses more is not signed."""
    adversarial_epsilon: Annotated[float, Field(ge=0, le=1)] = 0.1
    """L∞ bound of adversarial training, of the input range; 0 for none."""
    seed: int = 0
    """Of batches and attacks."""


class Http(Table):
    """Where ``/livez``, ``/readyz`` and ``/metrics`` are served."""

    listen: str = "127.0.0.1:0"
    """``host:port``; port 0 for any free one, which is logged and written to ``.nnsec/run``."""


class Limits(Table):
    """Bounds on what users send; beyond them a record is a dead letter."""

    depth: Count = 32
    """Levels of JSON."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 65_536
    """Rows of a record, 100,000 at most: a checkpoint can name no row beyond. Inputs need room for
    their score too: with eight detectors and 1 MiB a record, 17,100 rows fit in the binary encoding
    and 5,800 in JSON."""
    headers: Count = 128
    """Headers of a record."""
    bytes: Count = 1024 * 1024
    """Bytes of a value."""


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
