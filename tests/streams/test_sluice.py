"""The sluice under a plain Faust app: its example runs, and what cannot pass is kept."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.consumer import fetcher
from aiokafka.protocol.fetch import FetchRequest

from nnsec.adapters.records import Record
from streams import sluice
from streams.fetching import GATHER_BYTES, GATHER_MS
from streams.sluice import Options, Out, Sluice, Stateless, letter, read_options

ROOT = Path(__file__).parents[2]
WAIT = 40.0


def example() -> str:
    """The program in the module's docstring."""
    text = inspect.getdoc(sluice) or ""
    (block,) = re.findall(r"\n\n(    import faust\n.*?app\.main\(\)\n)", text, re.DOTALL)
    return textwrap.dedent(block)


def test_the_docs_show_the_same_example() -> None:
    """One program, in two places."""
    assert example() in (ROOT / "docs" / "delivery.md").read_text()


@pytest.fixture
async def names(broker: str) -> dict[str, str]:
    """Topics of the example, under names of the test's own."""
    tag = uuid.uuid4().hex[:8]
    found = {name: f"{tag}-{name}" for name in ("originals", "copies")}
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    letters = f"{found['originals']}-dead-letters"
    await admin.create_topics([NewTopic(name, 2, 1) for name in (*found.values(), letters)])
    await admin.close()
    return found


async def read(broker: str, topic: str, count: int) -> list[Any]:
    """The first records of a topic."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=broker, auto_offset_reset="earliest", fetch_max_wait_ms=10
    )
    await consumer.start()
    try:
        async with asyncio.timeout(WAIT):
            return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


async def write(broker: str, topic: str, values: list[bytes], pause: float = 0.0) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=value, headers=[("h", b"1")])
            await asyncio.sleep(pause)


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "copier.py", "worker", "--without-web"], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


async def test_the_example_runs(broker: str, names: dict[str, str], tmp_path: Path) -> None:
    """As a user would start it; it ends in good order, and begins where it was."""
    text = example().replace("localhost:9092", broker)
    for name, own in names.items():
        text = text.replace(f'"{name}"', f'"{own}"')
    text = text.replace('    "copier",', f'    "{names["copies"]}",').replace("=10.0", "=3.0")
    (tmp_path / "copier.py").write_text(text)
    await write(broker, names["originals"], [b"1", b"2", b"3"])
    for sent in (3, 4):
        process = start(tmp_path)
        try:
            found = await read(broker, names["copies"], sent)
            await asyncio.sleep(0.5)
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, WAIT)
        assert sorted(record.value for record in found) == [b"1", b"2", b"3", b"4"][:sent]
        await write(broker, names["originals"], [b"4"])


async def test_what_cannot_pass_becomes_a_letter(
    broker: str, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its bytes and headers as they were, and what is wrong beside them."""
    monkeypatch.chdir(tmp_path)
    app: Any = faust.App(
        f"{names['copies']}-refuser", broker=f"kafka://{broker}", store="memory://",
        web_enabled=False, topic_disable_leader=True, broker_session_timeout=4.0,
    )  # fmt: skip

    async def refuse(records: Any) -> list[Any]:
        raise ValueError("cannot swallow this")

    found = Sluice(app, Stateless("refuser", (names["originals"],), refuse))
    await write(broker, names["originals"], [b"1"])
    await app.start()
    try:
        (record,) = await read(broker, f"{names['originals']}-dead-letters", 1)
    finally:
        await app.stop()
    assert (record.key, record.value) == (b"1", b"1")
    assert dict(record.headers) == {
        "h": b"1", "dead-letter-error": b"ValueError: cannot swallow this",
        "dead-letter-attempts": b"3", "dead-letter-topic": names["originals"].encode(),
        "dead-letter-partition": str(int(dict(record.headers)["dead-letter-partition"])).encode(),
        "dead-letter-offset": b"0",
    }  # fmt: skip
    assert found.delivery is not None


async def test_the_broker_gathers_records_while_nobody_waits_for_them(
    broker: str, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers at once when somebody waits; these are aiokafka's own parts, pinned with it."""
    monkeypatch.chdir(tmp_path)
    asked: set[tuple[int, int]] = set()

    def request(wait_ms: int, size: int, *more: Any, **named: Any) -> Any:
        asked.add((size, wait_ms))
        return FetchRequest(wait_ms, size, *more, **named)

    monkeypatch.setattr(fetcher, "FetchRequest", request)
    app: Any = faust.App(
        f"{names['copies']}-gatherer", broker=f"kafka://{broker}", store="memory://",
        web_enabled=False, topic_disable_leader=True, broker_session_timeout=4.0,
    )  # fmt: skip

    async def slowly(records: Any) -> list[Out]:
        await asyncio.sleep(0.05)
        return [Out(names["copies"], record.value, record.key) for record in records]

    Sluice(app, Stateless("slow", (names["originals"],), slowly))
    await app.start()
    try:
        await write(broker, names["originals"], [b"%d" % i for i in range(60)], pause=0.01)
        assert len(await read(broker, names["copies"], 60)) == 60
    finally:
        await app.stop()
    patient = Options({}).fetch_wait_ms
    assert {(1, patient), (GATHER_BYTES, GATHER_MS)} <= asked


def test_an_app_s_own_configuration_counts() -> None:
    """Addresses, secrets, batches and sessions."""
    app: Any = faust.App(
        "one", broker="kafka://a:1;kafka://b", broker_max_poll_records=7,
        broker_session_timeout=3.0, web_enabled=False,
        broker_credentials=faust.SASLCredentials(username="u", password="p", mechanism="PLAIN"),
    )  # fmt: skip
    found = read_options(app)
    assert found.client["bootstrap_servers"] == ["a:1", "b:9092"]
    assert found.client["sasl_plain_username"] == "u"
    assert (found.max_batch, found.session_timeout) == (7, 3.0)


def test_a_long_error_is_cut() -> None:
    """A letter must not be too large because of it."""
    out = letter(Record("t", 1, 2, 3, None, b"v"), ValueError("x" * 5000), 3)
    assert max(len(value or b"") for _, value in out.headers) == 1024
