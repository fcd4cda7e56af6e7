"""Models of a user's own through the real stream: the same scores, and the attacker accused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings, parse
from nnsec.trust.statements import sign_statement
from schemas.alert import Alert
from schemas.base import to_millis
from schemas.inference import encode_request
from schemas.model_statement import ModelStatement
from schemas.score import decode_score
from schemas.summary import Summary
from streams.agent import Context
from streams.checkpoints import Checkpoints
from streams.control import Control
from streams.score import ScoreAgent
from tests.own_model.conftest import Own
from tests.streams.test_evidence_agent import LOGS, World
from workers.releases import release

ROOT = Path(__file__).parents[2]
SERVED = ("pictures", "vectors")
WAIT = 60.0


def _toml(tables: Mapping[str, Any], path: str = "") -> str:
    """Plain values and tables as TOML; JSON's texts, numbers and lists are TOML's."""
    lines = [f"[{path}]"] if path else []
    lines += [f"{k} = {json.dumps(v)}" for k, v in tables.items() if not isinstance(v, dict)]
    for key, value in tables.items():
        if isinstance(value, dict):
            lines.append(_toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines)


@pytest.fixture
def served(settings: Settings, owns: Mapping[str, Own], tmp_path: Path) -> Settings:
    """Settings that serve both models, and trust the key that signed them."""
    (tmp_path / "release.pub").write_bytes(owns["vectors"].key.public.pem())
    tables = settings.model_dump(mode="json", exclude_defaults=True)
    tables["kafka"]["start_at"] = "earliest"
    tables |= {
        "registry": {"url": str(owns["vectors"].registry)},
        "models": {name: owns[name].table for name in SERVED},
        "trust": {"release_keys": [str(tmp_path / "release.pub")]},
        "budget": {"expected_inputs_per_day": 1000.0},
    }
    (tmp_path / "nnsec.toml").write_text(_toml(tables))
    return parse(tables)


@pytest.fixture
def stream(served: Settings, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``nnsec stream`` with the user's package on its path."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", "--config", str(tmp_path / "nnsec.toml"),
             "stream"],
            cwd=tmp_path, stdout=log, stderr=log,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
        )  # fmt: skip
    yield process
    process.kill()
    process.wait()


def _records(own: Own, x: NDArray[Any], client: str, encoding: str) -> list[Out]:
    """Ten records of equal parts from one client."""
    found = []
    for number, rows in enumerate(np.array_split(x, 10)):
        value, headers = encode_request(
            model=own.name,
            x=rows,
            id=f"{own.name}-{client}-{number}",
            client=client,
            encoding=encoding,  # type: ignore[arg-type]
        )
        found.append(Out("inference.inputs", value, client.encode(), headers))
    return found


async def _until(settings: Settings, topic: str, count: int, log: Path) -> list[Record]:
    try:
        async with asyncio.timeout(WAIT):
            while True:
                found = [record async for record in kafka.read_to_end(settings, (topic,))]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.2)
    except TimeoutError:
        said = await asyncio.to_thread(log.read_text)
        pytest.fail(f"{topic}: fewer than {count} records\n{said[-5000:]}")


async def test_both_models_are_scored_and_their_attackers_accused(
    served: Settings, stream: subprocess.Popen[bytes], owns: Mapping[str, Own], tmp_path: Path
) -> None:
    """Scores from the topic are those of the checkpoint to the last bit, in both encodings."""
    for name in SERVED:
        await release(served, model=name, version=1, digest=owns[name].made.digest,
                      key=owns[name].key, reason="test")  # fmt: skip
    sent: dict[str, NDArray[Any]] = {}
    outs: list[Out] = []
    for name in SERVED:
        own = owns[name]
        attack, success = own.attacked(0.3)
        half = len(own.fresh) // 2
        for client, x, encoding in (
            ("ann", own.fresh[:half], "binary"), ("bob", own.fresh[half:], "json"),
            ("mallory", attack[success], "binary"),
        ):  # fmt: skip
            outs += _records(own, x, client, encoding)
            for number, rows in enumerate(np.array_split(x, 10)):
                sent[f"{name}-{client}-{number}"] = rows
    async with kafka.publisher(served) as publish:
        await publish(*outs)
    scores = await _until(served, "scores", len(sent), tmp_path / "log")
    for record in scores:
        score = decode_score(record.value, record.headers)
        own = owns[score.model]
        expected = own.made.checkpoint.suite.score(sent[score.id])
        assert score.detectors == own.made.manifest.detectors
        for figure in ("prediction", "p_value", "p_values", "confidence"):
            assert np.asarray(getattr(score, figure)).tobytes() == (
                getattr(expected, figure).tobytes()
            ), (score.id, figure)
    alerts = [Alert.decode(r.value) for r in await _until(served, "alerts", 2, tmp_path / "log")]
    accused = {(alert.model, alert.threat, alert.subject.id) for alert in alerts}
    assert {(name, "evasion", "mallory") for name in SERVED} <= accused
    assert not {client for _, _, client in accused} & {"ann", "bob"}
    assert stream.poll() is None


async def _scoring(own: Own, folder: Path) -> ScoreAgent:
    """The score agent with this model active."""
    (folder / "release.pub").write_bytes(own.key.public.pem())
    settings = parse(
        {
            "registry": {"url": str(own.registry)}, "models": {own.name: own.table},
            "trust": {"release_keys": [str(folder / "release.pub")]},
        }
    )  # fmt: skip
    now = datetime.now(UTC)
    statement = ModelStatement(
        model=own.name, epoch=1, phase="activate", version=1, digest=own.made.digest,
        reason="test", issued=now, expires=now + timedelta(hours=1),
    )  # fmt: skip
    checkpoints = Checkpoints(settings)
    control = Control(settings, uuid.UUID(int=1), checkpoints)
    value = sign_statement(statement, own.key)
    control.apply(Record("models", 0, 0, to_millis(now), own.name.encode(), value))
    assert await control.load_wanted()
    return ScoreAgent(Context(settings, LOGS, control, checkpoints, control.worker))


@pytest.mark.parametrize("encoding", ["json", "binary"])
async def test_an_input_that_the_model_has_no_answer_for_is_judged(
    owns: Mapping[str, Own], tmp_path: Path, encoding: str
) -> None:
    """It is the most suspicious there is, its sender is accused, and its neighbours are as ever."""
    own = owns["relative"]
    clean = own.fresh[:40]
    blank = np.repeat(np.arange(-8, 2, dtype=np.float32)[:, None], 30, axis=1)
    assert not own.made.checkpoint.network.forward(blank).logits.isfinite().any()
    agent = await _scoring(own, tmp_path)
    sent = [*_records(own, clean, "ann", encoding), *_records(own, blank, "mallory", encoding)]
    records = [
        Record(out.topic, 0, offset, 1000, out.key, out.value, tuple(out.headers))
        for offset, out in enumerate(sent)
    ]
    outs = await agent.process(records)
    alone = await agent.process(records[:10])
    assert outs[:10] == alone[:10]
    scores = [decode_score(out.value, out.headers) for out in outs[:20]]
    for score in scores[10:]:
        assert score.confidence.tolist() == [0]
        assert score.verdict == ("flag",)
    rows = Summary.decode(outs[20].value).unpack()
    assert rows[:40].tobytes() == Summary.decode(alone[10].value).unpack().tobytes()
    assert (rows["level"][40:] == 5).all()
    assert (rows["score"][40:] > 1e29).all()
    world = World()
    evidence = await world.started()
    summary = Record("summaries", 0, 0, 1000, outs[20].key, outs[20].value)
    alerts = [Alert.decode(out.value) for out in await evidence.process([summary])]
    assert [alert.subject.id for alert in alerts if alert.subject.kind == "client"] == ["mallory"]
