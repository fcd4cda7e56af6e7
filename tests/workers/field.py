"""Remediation among real processes: a folder with a configuration, a broker, checkpoints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import aiohttp

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.action import Action
from schemas.model_statement import ModelStatement
from tests.conftest import MadeCheckpoint
from workers.demo.stage import to_toml

ROOT = Path(__file__).parents[2]
LEARNED = (0, 9)
"""First and last offset, in partition 0 of ``training.samples``, that version 2 learned from."""


@dataclass
class Field:
    """Settings, what is in the registry, and the processes that were started."""

    settings: Settings
    folder: Path
    checkpoint: MadeCheckpoint
    digests: dict[int, str]
    processes: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start one command of ``nnsec`` in the folder."""
        config = self.folder / "nnsec.toml"
        if not config.exists():
            tables = self.settings.model_dump(mode="json", exclude_defaults=True)
            config.write_text(to_toml(tables) + "\n", "utf-8")
        name = "-".join(command)
        with (self.folder / f"{name}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", "--config", str(config), *command],
                cwd=self.folder, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.processes.append((name, process))
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End it as the kernel would, in the middle of whatever it does."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    async def ready(
        self, role: str, process: subprocess.Popen[bytes], seconds: float = 60.0
    ) -> None:
        """Wait until a process says that it is ready."""
        file = self.folder / ".nnsec" / "run" / f"{role}-{process.pid}.json"

        async def asked() -> bool:
            assert process.poll() is None, self.log()
            try:
                address = json.loads(file.read_text())["address"]
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://{address}/readyz") as answer,
                ):
                    return answer.status == 200
            except (OSError, ValueError, aiohttp.ClientError):
                return False

        await self.until(asked, seconds)

    def close(self) -> None:
        for _, process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self) -> str:
        """What all processes wrote."""
        return "\n".join(
            f"--- {file.name}\n{file.read_text()}" for file in sorted(self.folder.glob("*.log"))
        )

    async def read(self, topic: str) -> list[Record]:
        """All that is on a topic now."""
        return [record async for record in kafka.read_to_end(self.settings, (topic,))]

    async def actions(self) -> list[Action]:
        return [Action.decode(record.value) for record in await self.read("actions")]

    async def until(self, met: Any, seconds: float = 20.0) -> Any:
        """Wait until an asynchronous question has an answer that is true, and return it."""
        try:
            async with asyncio.timeout(seconds):
                while not (found := await met()):  # noqa: ASYNC110 - a broker has no event
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise AssertionError(f"waited {seconds:g} s in vain\n{self.log()}") from error
        return found

    def statement(self, version: int, epoch: int) -> Out:
        """A signed statement that a version serves."""
        now = datetime.now(UTC)
        said = ModelStatement(
            model="digits", epoch=epoch, phase="activate", version=version,
            digest=self.digests[version], reason="a test", issued=now,
            expires=now + timedelta(hours=1),
        )  # fmt: skip
        envelope = sign_statement(said, keys.load_private(self.checkpoint.release_key))
        return Out("models", envelope, b"digits")


@contextmanager
def made(
    settings: Settings, checkpoint: MadeCheckpoint, folder: Path, log: UUID, **tables: Any
) -> Iterator[Field]:
    """A field with version 1, and versions 2 and 3 on it: 2 learned from `LEARNED`, 3 from 2.

    Parameters
    ----------
    log:
        Identity of ``training.samples``.
    """
    given = checkpoint.configure(settings, folder).model_dump()
    given["remediation"]["release_key"] = str(checkpoint.release_key)
    given["policy"] = {
        "poisoning": {"severity": "high", "actions": ["quarantine", "rollback"], "approval": "none"}
    }
    for name, table in tables.items():
        given[name] |= table
    configured = parse(given)
    found = Field(configured, folder, checkpoint, descendants(configured, checkpoint, log))
    try:
        yield found
    finally:
        found.close()


def descendants(settings: Settings, checkpoint: MadeCheckpoint, log: UUID) -> dict[int, str]:
    """Make versions 2 and 3 out of version 1, and return the digests of all."""
    from nnsec.adapters.registry import Registry
    from nnsec.checkpoints import Parent, verify
    from nnsec.checkpoints.creation import publish
    from nnsec.checkpoints.manifest import DETECTORS, GOLDEN, SCREENS, WEIGHTS, Learned

    registry = Registry(settings.registry.url)
    key = keys.load_private(checkpoint.release_key)
    first = verify(registry, "digits", 1, release_keys=(key.public,))
    files = {name: first.files[name] for name in (WEIGHTS, DETECTORS, SCREENS, GOLDEN)}
    digests = {1: checkpoint.digest}
    learned = Learned(log=log, topic="training.samples", partition=0, ranges=(LEARNED,))
    for version in (2, 3):
        manifest = first.manifest.model_copy(
            update={
                "version": version, "learned": (learned,) if version == 2 else (),
                "parent": Parent(version=version - 1, digest=digests[version - 1]),
            }
        )  # fmt: skip
        made = publish(
            registry, manifest, files, spec=settings.models["digits"], key=key,
            now=datetime.now(UTC),
        )  # fmt: skip
        digests[version] = made.digest
    return digests


def accepted(log: UUID, offsets: Sequence[int], source: str = "s1") -> list[Out]:
    """Records of ``training.accepted``, by their headers alone, of partition 0."""
    return [
        Out(
            "training.accepted", b"a sample", source.encode(),
            (
                ("nnsec-log", str(log).encode()), ("nnsec-partition", b"0"),
                ("nnsec-offset", str(offset).encode()), ("nnsec-rows", b"0"),
                ("ce_id", str(uuid5(log, str(offset))).encode()),
            ),
        )
        for offset in offsets
    ]  # fmt: skip
