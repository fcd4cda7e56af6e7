"""The broker of a benchmark: embedded, Apache Kafka from a folder, or one that runs already."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from nnsec.errors import ConfigError
from workers.embedded import Broker, free_port


class Apache(Broker):
    """Apache Kafka, started by a program in a folder: ``kafka DATA PORT CONTROLLER_PORT``."""

    name = "kafka"

    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__(folder)
        self._program = program

    def command(self, data: Path) -> list[str]:
        """Start it with its data in a folder, and its controller on a port of its own."""
        return [str(self._program), str(data / "data"), str(self.port), str(free_port())]


@contextmanager
def broker(where: str | None) -> Iterator[tuple[str, str]]:
    """Start a broker, or take one that runs.

    Parameters
    ----------
    where:
        None for the embedded broker, a folder with a program ``kafka`` that starts Apache Kafka,
        or the address of a broker.

    Yields
    ------
    tuple
        Address, and what it is in words.

    Raises
    ------
    ConfigError
        If it is neither an address nor a folder with that program.
    """
    if where is not None and not Path(where).is_dir():
        if ":" not in where:
            raise ConfigError(f"{where} is neither a folder nor an address of a broker")
        yield where, f"the broker at {where}"
        return
    with tempfile.TemporaryDirectory(prefix="nnsec-bench-") as name:
        if where is None:
            service, words = Broker(name), "embedded broker"
        else:
            program = Path(where).absolute() / "kafka"
            if not program.is_file():
                raise ConfigError(f"there is no program {program} that starts Apache Kafka")
            service, words = Apache(program, Path(name)), "Apache Kafka"
        with service:
            yield service.url, words


async def make_topics(servers: str, names: Sequence[str], partitions: int) -> None:
    """Create topics.

    Parameters
    ----------
    servers:
        Address of the broker.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()
