"""Bad input through the real stream: whatever comes has its outcome, and its neighbours theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.detectors.energy import Energy
from nnsec.network import Forward, Network
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.dead_letter import DeadLetter, decode_dead_letter
from schemas.inference import encode_request
from schemas.model_statement import ModelStatement
from schemas.score import Score, decode_score
from streams.delivery import ATTEMPTS
from streams.runtime import run
from streams.score import SKIPPED
from tests.badinput import naive
from tests.badinput.mutations import Case, cases
from tests.conftest import MadeCheckpoint

INPUTS = "inference.inputs"
WAIT = 60.0
MARK = 13
"""Value of all pixels of an input that the model, or a detector, cannot bear."""
Place = tuple[int, int]


@pytest.fixture
async def released(settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path) -> Settings:
    """Settings with checkpoint 1 of ``digits`` released."""
    found = checkpoint.configure(settings, tmp_path)
    now = datetime.now(UTC)
    await kafka.declare(found, now=now)
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
        reason="first release", issued=now, expires=now + timedelta(hours=1),
    )  # fmt: skip
    value = sign_statement(statement, keys.load_private(checkpoint.release_key))
    async with kafka.publisher(found) as publish:
        await publish(Out("models", value, b"digits"))
    return found.model_copy(
        update={"kafka": found.kafka.model_copy(update={"start_at": "earliest"})}
    )


@asynccontextmanager
async def scoring(settings: Settings, *, apart: bool = True) -> AsyncIterator[None]:
    """The role that scores, in this process, drained at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(run(settings, ("score",), stop=stop, apart=apart))
    try:
        yield
    finally:
        stop.set()
        assert await asyncio.wait_for(task, WAIT) == 0


async def send(settings: Settings, records: Sequence[Out]) -> set[Place]:
    """Publish, and say where the records lie."""
    before = {place async for place in _places(settings)}
    async with kafka.publisher(settings) as publish:
        await publish(*records)
    return {place async for place in _places(settings)} - before


async def _places(settings: Settings) -> AsyncIterator[Place]:
    async for record in kafka.read_to_end(settings, (INPUTS,)):
        yield record.partition, record.offset


async def outcomes(
    settings: Settings, sent: set[Place], skipped: int = 0
) -> tuple[dict[Place, Score], dict[Place, DeadLetter]]:
    """Scores and dead letters by place, once all have one that are not skipped."""
    async with asyncio.timeout(WAIT):
        while True:
            records: list[Record] = [
                r async for r in kafka.read_to_end(settings, ("scores", "dead-letters"))
            ]
            read = [decode_score(r.value, r.headers) for r in records if r.topic == "scores"]
            buried = [
                decode_dead_letter(r.key, r.value, r.headers)
                for r in records
                if r.topic == "dead-letters"
            ]
            scores = {(s.partition, s.offset): s for s in read}
            letters = {(d.partition, d.offset): d for d in buried}
            if len(read) + len(buried) >= len(sent) - skipped:
                assert len(records) == len(scores) + len(letters), "an outcome came twice"
                assert scores.keys() | letters.keys() <= sent
                return scores, letters
            await asyncio.sleep(0.2)


async def lag(settings: Settings) -> int:
    """Inputs that are not committed."""
    async with kafka.Positions(settings, "score", (INPUTS,)) as positions:
        return sum(bounds.lag for bounds in (await positions.read()).values())


def good(x: NDArray[np.uint8], number: int, **more: Any) -> Out:
    value, headers = encode_request(
        model="digits", x=x[number % len(x)][None], id=f"good-{number}", client="c", **more
    )
    return Out(INPUTS, value, b"%d" % number, headers)


def is_response(case: Case) -> bool:
    """Whether a record is a serving platform's response, which is no input."""
    try:
        found = naive.decode(
            case.key, case.value, case.headers, position="0/0", default="", identity=""
        )
    except naive.Refused:
        return False
    return found is None


async def test_mutated_records_are_scored_or_dead_letters(
    released: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Among good inputs, two thousand that went wrong in every way, the large and the null too."""
    mutated = list(cases(17, 2000))
    rows = [Out(INPUTS, case.value, case.key, tuple(case.headers)) for case in mutated]
    skipped = sum(is_response(case) for case in mutated)
    before = SKIPPED.labels(INPUTS)._value.get()
    rows += [good(checkpoint.x, n, encoding=("json", "binary")[n % 2]) for n in range(200)]
    rows += [Out(INPUTS, bytes([n]) * 1_000_000, b"large", ()) for n in range(3)]
    rows = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    sent = await send(released, rows)
    assert len(sent) == len(rows)
    async with scoring(released):
        scores, letters = await outcomes(released, sent, skipped)
    assert SKIPPED.labels(INPUTS)._value.get() - before == skipped > 10
    assert {s.id for s in scores.values()} >= {f"good-{n}" for n in range(200)}
    assert all(letter.field and letter.error for letter in letters.values())
    assert {letter.error_class for letter in letters.values()} >= {
        "SchemaError", "UnknownModel", "TooLarge"
    }  # fmt: skip
    assert {letter.attempts for letter in letters.values()} == {1}
    assert await lag(released) == 0


def _marked(inputs: torch.Tensor) -> bool:
    """Whether one of (batch, *shape) scaled inputs is the poisonous one."""
    return bool(((inputs.flatten(1) - MARK / 16).abs() < 1e-6).all(1).any())


def _fragile_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run_tile = Network._run

    def fail(self: Network, part: torch.Tensor, size: int) -> Any:
        if _marked(part):
            raise RuntimeError("the model cannot bear this input")
        return run_tile(self, part, size)

    monkeypatch.setattr(Network, "_run", fail)


def _fragile_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    score = Energy.score

    def fail(self: Energy, forward: Forward, network: Network) -> Any:
        if _marked(forward.inputs):
            raise ValueError("the detector cannot bear this input")
        return score(self, forward, network)

    monkeypatch.setattr(Energy, "score", fail)


@pytest.mark.parametrize("fragile", [_fragile_model, _fragile_detector])
async def test_one_poisonous_record_in_ten_harms_no_neighbour(
    released: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch,
    shown: Callable[..., None], fragile: Any,
) -> None:  # fmt: skip
    """It is tried at most three times by itself and becomes a dead letter; the rest is scored.

    Caught, for example: a batch that is given up as a whole.
    """
    fragile(monkeypatch)  # here, so models must run in this process
    poison = np.full((1, 1, 8, 8), MARK, np.uint8)
    rows = [
        good(poison, n)
        if n % 10 == 3
        else good(checkpoint.x, n, encoding=("json", "binary")[n % 2])
        for n in range(400)
    ]
    sent = await send(released, rows)
    async with scoring(released, apart=False):
        scores, letters = await outcomes(released, sent)
    assert {s.id for s in scores.values()} == {f"good-{n}" for n in range(400) if n % 10 != 3}
    assert len(letters) == 40
    assert {letter.error_class for letter in letters.values()} == {"ModelFailed"}
    assert all(1 <= letter.attempts <= ATTEMPTS == 3 for letter in letters.values())
    assert all("cannot bear" in letter.error for letter in letters.values())
    assert await lag(released) == 0
    most = max(letter.attempts for letter in letters.values())
    shown(18, "Tansu (embedded)", 0, scored=len(scores), dead_letters=40, most_attempts=most)
