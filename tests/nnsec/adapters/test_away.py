"""What happens while Kafka does not answer: it is waited for, said once, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CommitFailedError, KafkaConnectionError, KafkaError

from nnsec.adapters import clients, declaration, positions, tail
from nnsec.adapters.clients import PASSWORD, Outage, client_options, closed, connected, outage
from nnsec.adapters.positions import Positions
from nnsec.adapters.publisher import Publisher
from nnsec.adapters.tail import Tail
from nnsec.errors import ConfigError
from nnsec.settings import Kafka, Settings

ELSEWHERE = Settings(kafka=Kafka(bootstrap_servers="127.0.0.1:1"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a moment where real waiting is a quarter of a second."""
    for module in (clients, declaration, positions, tail):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(outage, "since", None)


# --- options ---


def test_without_a_broker_it_says_what_to_do() -> None:
    """Embedded is no address."""
    with pytest.raises(ConfigError, match="nnsec up"):
        client_options(Kafka())


def test_secrets_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never from the configuration itself."""
    table: dict[str, Any] = {
        "bootstrap_servers": "a:1, b:2,", "security_protocol": "SASL_PLAINTEXT",
        "sasl_username": "u",
    }  # fmt: skip
    monkeypatch.setenv(PASSWORD, "from the environment")
    options = client_options(Kafka(**table))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["sasl_plain_username"] == "u"
    assert options["sasl_plain_password"] == "from the environment"
    file = tmp_path / "password"
    file.write_text("from the file\n")
    found = client_options(Kafka(**table, sasl_password_file=str(file)))
    assert found["sasl_plain_password"] == "from the file"
    with pytest.raises(ConfigError, match="sasl_password_file cannot be read"):
        client_options(Kafka(**table, sasl_password_file=str(tmp_path / "none")))


def test_certificates_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    """And the system's are used where none is named."""
    table = {"bootstrap_servers": "a:1", "security_protocol": "SSL"}
    assert client_options(Kafka(**table))["ssl_context"].check_hostname  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ssl_"):
        client_options(Kafka(**table, ssl_cafile=str(tmp_path / "none")))  # type: ignore[arg-type]


# --- saying so ---


def test_an_outage_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is noticed."""
    clock = iter([10.0, 13.5])
    found = Outage(lambda: next(clock))
    with caplog.at_level(logging.WARNING):
        found.back()
        found.away("no route")
        found.away("no route")
        assert found.since == 10.0
        found.back()
        found.back()
    assert [record.message for record in caplog.records] == [
        "Kafka does not answer, waiting for it: no route", "Kafka is back after 3.5 s",
    ]  # fmt: skip


def test_the_client_library_says_each_thing_twice_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the broker is away, as information only."""
    now = [0.0]
    found = Outage(lambda: now[0])
    library = logging.getLogger("aiokafka")
    kept = library.handlers, library.propagate
    try:
        found.listen()
        with caplog.at_level(logging.INFO):
            for second in range(0, 70, 10):
                now[0] = float(second)
                library.error("node %d is not ready", second)
            found.since = 0.0
            library.error("another kind")
    finally:
        library.handlers, library.propagate = kept
    said = [(record.levelname, record.message) for record in caplog.records]
    assert said == [
        ("WARNING", "aiokafka: node 0 is not ready"), ("WARNING", "aiokafka: node 30 is not ready"),
        ("WARNING", "aiokafka: node 60 is not ready"), ("INFO", "aiokafka: another kind"),
    ]  # fmt: skip


# --- connecting ---


class Flaky:
    """A client whose start fails some times, and that may not close either."""

    def __init__(self, failures: list[BaseException], closing: Exception | None = None) -> None:
        self.failures = failures
        self.closing = closing
        self.stopped = 0

    async def start(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def stop(self) -> None:
        self.stopped += 1
        if self.closing is not None:
            raise self.closing


async def test_connecting_waits_for_as_long_as_it_takes() -> None:
    """Each attempt with a new client, the old one closed."""
    failures: list[BaseException] = [KafkaConnectionError("away"), OSError("no route")]
    made: list[Flaky] = []

    def make() -> Flaky:
        made.append(Flaky(failures, KafkaError("cannot say good-bye")))
        return made[-1]

    assert await connected(make) is made[2]
    assert [client.stopped for client in made] == [1, 1, 0]
    assert outage.since is None


async def test_what_is_no_outage_ends_the_attempt() -> None:
    """Its client is closed all the same."""
    client = Flaky([ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        await connected(lambda: client)
    assert client.stopped == 1


async def test_closing_does_not_mind_an_absent_broker() -> None:
    """Admin clients are closed, the others stopped."""
    await closed(Flaky([], OSError("gone")))
    ended: list[str] = []

    async def close() -> None:
        ended.append("closed")

    await closed(SimpleNamespace(close=close))
    assert ended == ["closed"]


async def test_closing_ends_with_what_a_client_cancels_itself() -> None:
    """But not with a cancellation from outside: who asked for it must see it."""
    stopping = asyncio.Event()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def endless() -> None:
        stopping.set()
        await asyncio.Event().wait()

    await closed(SimpleNamespace(stop=cancelled))
    task = asyncio.create_task(closed(SimpleNamespace(stop=endless)))
    await stopping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_real_refusal_is_waited_for() -> None:
    """Nobody listens on port 1: the start goes on until it is given up."""
    found = Publisher(ELSEWHERE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(found.start(), 0.3)
    assert outage.since is not None
    await found.stop()


# --- reading ---


def failing(times: int, answer: Any, error: type[KafkaError] = KafkaConnectionError) -> Any:
    """An asynchronous function that fails some times, then answers."""
    left = [times]

    async def call(*_: Any, **__: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return answer

    return call


async def test_a_tail_goes_on_when_the_broker_is_back() -> None:
    """Neither asking for the end nor reading gives up."""
    message = SimpleNamespace(
        topic="nnsec.models", partition=0, offset=3, timestamp=1, key=None, value=b"v", headers=()
    )
    found = Tail(ELSEWHERE, ("models",))
    consumer = SimpleNamespace(
        end_offsets=failing(2, {"p": 4}), getmany=failing(1, {"p": [message]}),
        assignment=lambda: ["p"], highwater=lambda _: None,
    )  # fmt: skip
    found._consumer = consumer
    assert await found._ends() == {"p": 4}
    assert await found._poll() == []
    assert [record.value for record in await found._poll()] == [b"v"]


@pytest.mark.parametrize(
    ("error", "expected"), [(CommitFailedError, False), (KafkaConnectionError, True)]
)
async def test_committing_for_a_group(error: type[KafkaError], expected: bool) -> None:
    """One with members commits by itself; an absent broker is waited for."""
    found = Positions(ELSEWHERE, "score", ("labels",))
    found._consumer = SimpleNamespace(commit=failing(2, None, error))
    assert await found.commit({("labels", 0): 5}) is expected


async def test_reading_positions_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the broker answers."""
    found = Positions(ELSEWHERE, "score", ("labels",))
    monkeypatch.setattr(found, "_read", failing(2, {"there": "at last"}))
    assert await found.read() == {"there": "at last"}


async def test_positions_that_cannot_be_assigned_close_their_client(settings: Settings) -> None:
    """Whatever ends the wait for metadata."""

    class Never(Positions):
        async def _assign(self) -> None:
            raise ZeroDivisionError

    found = Never(settings, "score", ("labels",))
    with pytest.raises(ZeroDivisionError):
        await found.__aenter__()
    assert found._consumer._closed


# --- declaring ---


async def test_declaring_is_patient() -> None:
    """An absent broker and a time-out are the same to it."""
    calls: list[Callable[[], Awaitable[str]]] = [failing(2, "done"), failing(0, "done")]
    for call in calls:
        assert await declaration._patiently(call) == "done"


@pytest.mark.parametrize(
    ("code", "outcome"), [(0, True), (36, False), (7, KafkaError), (29, ConfigError)]
)
def test_the_answer_to_a_topic_s_creation(code: int, outcome: Any) -> None:
    """Made, made by another, to be tried again, or not allowed."""
    if isinstance(outcome, bool):
        assert declaration._created("t", code, None) is outcome
        return
    with pytest.raises(outcome):
        declaration._created("t", code, "why")


@pytest.mark.parametrize(
    ("actual", "wanted", "expected"),
    [("-1", "100", False), ("100", "-1", True), ("99", "100", True), ("100", "100", False)],
)
def test_shorter_is_not_long_enough(actual: str, wanted: str, expected: bool) -> None:
    """−1 is for ever."""
    assert declaration._shorter(actual, wanted) is expected
