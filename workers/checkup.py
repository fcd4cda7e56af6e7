"""What can be wrong with an installation, looked at one thing at a time; nothing is changed.

Each check answers with findings: what was seen, and what to do where that is not well.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import aiohttp

from nnsec.adapters.declaration import config, inspect, partitions
from nnsec.adapters.positions import Positions
from nnsec.adapters.registry import Registry
from nnsec.adapters.tail import read_to_end
from nnsec.errors import NNSecError
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from schemas.topics import TOPICS
from workers import probing, store
from workers.checkup_logs import automation, dead_letters
from workers.checkup_metrics import budget
from workers.findings import Finding, Status
from workers.words import counted

SECONDS = 10.0
"""Time that one check may take."""
CHECK_ADDRESS = "see that it runs, and that the address in the configuration is right"
LAG = 10_000
"""Unfinished records from which a group is behind."""
OLDEST_REDIS = (6, 2)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "score": ("inference.inputs",),
    "screen": ("training.samples",),
    "join": ("labels", "scores"),
    "evidence": ("summaries",),
    "correlate": ("alerts", "actions", "commands"),
    "remediation": ("incidents", "commands"),
}
"""What each consumer group reads; here too, since asking the roles imports torch."""


Check = Callable[[Settings], Awaitable[Sequence[Finding]]]


async def examine(settings: Settings, folder: Path = Path(".nnsec")) -> list[Finding]:
    """Run all checks; what needs Kafka is left out where it does not answer.

    Parameters
    ----------
    folder:
        Where processes of this machine write the addresses of their probes.
    """
    broker = await _within("broker", topics(settings))
    with_kafka: tuple[Check, ...] = (models, groups, automation, dead_letters)
    found = [*broker, *check_keys(settings), *await _within("registry", registry(settings))]
    for check in with_kafka if all(one.status != "fail" for one in broker) else ():
        found.extend(await _within(check.__name__, check(settings)))
    found.extend(await _within("redis", redis(settings)))
    found.extend(await _within("processes", processes(folder)))
    found.extend(await _within("budget", budget(folder)))
    return found


async def _within(about: str, check: Awaitable[Sequence[Finding]]) -> Sequence[Finding]:
    """Have a check end in time, its errors be findings."""
    try:
        async with asyncio.timeout(SECONDS):
            return await check
    except TimeoutError:
        return [Finding(about, "fail", f"no answer within {SECONDS:g} s", CHECK_ADDRESS)]
    except NNSecError as error:
        return [Finding(about, "fail", str(error))]


async def topics(settings: Settings) -> Sequence[Finding]:
    """Whether the broker answers, and the topics are there and fit."""
    try:
        async with asyncio.timeout(0.8 * SECONDS):
            missing = await inspect(settings)
    except TimeoutError:
        return [await _away(settings.kafka.bootstrap_servers)]
    answers = Finding("broker", "ok", f"answers at {settings.kafka.bootstrap_servers}")
    if missing:
        text = f"{len(missing)} of {len(TOPICS)} topics are missing: {', '.join(missing[:3])}, …"
        status: Status = "warn" if settings.kafka.declare else "fail"
        return [answers, Finding("topics", status, text, "run `nnsec topics --declare`")]
    inputs = TOPICS["inference.inputs"]
    size = config(settings, inputs).get("max.message.bytes")
    text = (
        f"{len(TOPICS)} topics fit; inference.inputs has {partitions(settings, inputs)} partitions "
        f"or more, and takes {f'{size} bytes' if size else 'what the broker takes'} a record"
    )
    return [answers, Finding("topics", "ok", text)]


async def _away(servers: str) -> Finding:
    """Why no broker answers, as far as a connection to the first address says."""
    address = servers.partition(",")[0].strip()
    host, _, port = address.rpartition(":")
    why, advice = "", CHECK_ADDRESS
    try:
        async with asyncio.timeout(0.1 * SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), port)
        writer.close()
        why, advice = "it takes connections, but is no broker", "see [kafka] security_protocol too"
    except TimeoutError:
        why = "no connection in time"
    except OSError as error:
        why = str(error)
    return Finding("broker", "fail", f"{address} does not answer: {why}", advice)


def check_keys(settings: Settings) -> list[Finding]:
    """Whether the keys that are named can be read, and private ones by their owner alone."""
    trust, found = settings.trust, []
    for about, paths, load in (
        ("trust.release_keys", trust.release_keys, keys.load_public),
        ("trust.operator_keys", trust.operator_keys, keys.load_public),
        ("remediation.release_key", (settings.remediation.release_key,), keys.load_private),
        ("trainer.operator_key", (settings.trainer.operator_key,), keys.load_private),
        ("trainer.release_key", (settings.trainer.release_key,), keys.load_private),
    ):
        named = [path for path in paths if path]
        if not named and about.startswith("trust"):
            advice = "make one with `nnsec keys new`, and name its .pub file"
            found.append(Finding(about, "warn", "none is trusted, so nothing is accepted", advice))
        found.extend(_key(about, path, load) for path in named)
    return found


def _key(about: str, path: str, load: Callable[[str], keys.PublicKey | keys.PrivateKey]) -> Finding:
    try:
        key = load(path)
    except NNSecError as error:
        return Finding(about, "fail", str(error), "correct the path, or make a new key")
    private = isinstance(key, keys.PrivateKey)
    if private and Path(path).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding(about, "warn", f"others can read {path}", f"run `chmod 600 {path}`")
    return Finding(about, "ok", f"{path} is key {key.id[:16]}…")


async def registry(settings: Settings) -> Sequence[Finding]:
    """Whether the registry can be read, and has checkpoints of the configured models."""
    found = Registry(settings.registry.url)
    return [await asyncio.to_thread(_versions, found, model) for model in settings.models] or [
        Finding("registry", "warn", "no model is configured", "add a table [models.NAME]")
    ]


def _versions(found: Registry, model: str) -> Finding:
    versions = found.list(model)
    if not versions:
        advice = f"make one with `nnsec checkpoint create --model {model}`"
        return Finding("registry", "warn", f"{found.url} has no checkpoint of {model}", advice)
    text = f"{model}: {counted(len(versions), 'version')}, newest {versions[-1]}"
    return Finding("registry", "ok", text)


async def models(settings: Settings) -> Sequence[Finding]:
    """Whether a valid statement says what serves each configured model."""
    trusted = [keys.load_public(path) for path in settings.trust.release_keys]
    records = [record async for record in read_to_end(settings, ("models",))]
    standing = statements.fold(records, trusted).models
    found = []
    for model in settings.models:
        active = standing[model].activated if model in standing else None
        if active is None:
            advice = await asyncio.to_thread(_to_release, settings, model)
            text = f"no valid statement says what serves {model}, so its inputs wait"
            found.append(Finding("models", "fail", text, advice))
        else:
            text = f"{model}: version {active.version} serves, epoch {active.epoch}"
            found.append(Finding("models", "ok", text))
    return found


def _to_release(settings: Settings, model: str) -> str:
    """The command that says what serves; a new checkpoint only where there is none."""
    try:
        there = Registry(settings.registry.url).list(model)
    except NNSecError:
        return "see that the registry can be read"
    if there:
        return f"run `nnsec checkpoint release --model {model} …`"
    return f"run `nnsec checkpoint create --model {model} … --release`"


async def groups(settings: Settings) -> Sequence[Finding]:
    """Whether the consumer groups keep up."""
    return await asyncio.gather(*(_group(settings, *group) for group in GROUPS.items()))


async def _group(settings: Settings, role: str, names: Sequence[str]) -> Finding:
    async with Positions(settings, role, names) as positions:
        bounds = (await positions.read()).values()
    about = f"group {settings.kafka.prefix}{role}"
    if all(one.committed is None for one in bounds):
        if role == "remediation" and not any(one.lag for one in bounds):
            # It commits with the first record; the roles of the streams where they begin.
            return Finding(about, "ok", "nothing came yet")
        command = "nnsec worker remediation" if role == "remediation" else "nnsec stream"
        return Finding(about, "warn", "it never ran", f"run `{command}`")
    outside = [b for b in bounds if b.committed is not None and not b.begin <= b.committed <= b.end]
    if outside:
        text = "it stands outside its log, so those partitions stop"
        advice = (
            "find out why; docs/operations.md, “When a partition has stopped”, says how to go on"
        )
        return Finding(about, "fail", text, advice)
    lag = sum(one.lag for one in bounds)
    behind = counted(lag, "record")
    if lag > LAG:
        return Finding(about, "warn", f"{behind} behind", "start more processes of it")
    return Finding(about, "ok", f"{behind} behind")


async def redis(settings: Settings) -> Sequence[Finding]:
    """Whether Redis answers, is new enough, and takes what is written."""
    lock = f"{settings.redis.prefix}lock:doctor"
    async with store.connect(settings) as client:
        with store.converted():
            info = await client.info("server")
            await client.set(lock, "1", ex=5)
            await client.delete(lock)
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        return [Finding("redis", "fail", f"version {version}", "use Redis 6.2 or newer, or Valkey")]
    return [Finding("redis", "ok", f"version {version} answers and can be written")]


async def processes(folder: Path) -> Sequence[Finding]:
    """Whether the processes of this folder are ready."""
    found = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        for place in probing.places(folder / "run"):
            state = await probing.state(session, place.address)
            about = f"{place.role} {place.pid}"
            if state == probing.READY:
                found.append(Finding(about, "ok", f"ready, serves on {place.address}"))
            elif state == probing.SILENT:
                text = f"does not answer on {place.address}"
                found.append(Finding(about, "warn", text, f"if it is gone, remove {place.file}"))
            else:
                found.append(Finding(about, "warn", f"not ready: {state}", "see its log"))
    return found or [Finding("processes", "warn", f"none runs in {folder}", "run `nnsec up`")]
