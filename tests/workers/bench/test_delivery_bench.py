"""The benchmarks of delivery and latency: real processes, and figures that are what they say."""

from __future__ import annotations

import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nnsec.errors import ConfigError, NNSecError
from nnsec.settings import Settings
from schemas.inference import Expected, Request, decode_request
from workers.bench import delivery, latency
from workers.bench.broker import broker as bench_broker
from workers.bench.contestants import work
from workers.bench.delivery import CONTESTANTS, OURS, STOCK, Rate, Report
from workers.bench.latency import Quantiles, slope
from workers.bench.latency import Report as Late
from workers.bench.traffic import ATTACK_EVERY, Traffic
from workers.cli import app
from workers.demo.material import Material


def test_all_contestants_do_the_same_work(broker: str, tmp_path: Path) -> None:
    """Each reads all, writes a score for each and commits; the table and the file say how fast."""
    file = tmp_path / "figures.json"
    command = ["bench", "delivery", "--kafka", broker, "--records", "1000", "--rounds", "1"]
    result = CliRunner().invoke(app, [*command, "--json", str(file)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["records"] == 1000
    assert figures["decode_us"] > 0
    assert all(0 < us < 1000 for us in figures["steps_us"].values())
    assert figures["contestants"].keys() == CONTESTANTS.keys()
    for name, found in figures["contestants"].items():
        assert found["per_second"] > 0
        assert found["cpu_us"] > 0
        assert name in result.output


def test_ratios_are_taken_within_a_round() -> None:
    """So that a machine that is slow for a while speaks against nobody."""
    report = Report("here", 10, 784, 1.0, {})
    for weather in (1.0, 0.1, 1.0):
        rates = dict.fromkeys(CONTESTANTS, Rate(1000 * weather, 5.0))
        report.rounds.append(rates | {OURS: Rate(6000 * weather, 5.0)})
    assert report.ratio(STOCK) == pytest.approx(6.0)
    assert report.rate(OURS).per_second == 6000


def test_a_contestant_that_fails_is_said() -> None:
    """With the end of what it wrote."""
    with pytest.raises(NNSecError, match="No module named"):
        delivery.said(["python", "-m", "workers.bench.contestants.nobody"])


@pytest.mark.parametrize("value", [b"nope" + bytes(780), work.encode(3, 784)[:-1]])
def test_the_work_is_strict(value: bytes) -> None:
    """It looks at the head and at the size."""
    work.verdict(work.encode(3, 784), 5)
    with pytest.raises(ValueError, match="not an input"):
        work.verdict(value, 5)


def test_a_broker_that_is_none_is_said(tmp_path: Path) -> None:
    """Before anything is measured."""
    for where, words in ((str(tmp_path), "no program"), ("nowhere", "neither a folder")):
        with pytest.raises(ConfigError, match=words), bench_broker(where):
            pass


def test_the_embedded_broker_is_ended() -> None:
    """Nothing is left running."""
    with bench_broker(None) as (address, words):
        assert words == "embedded broker"
    host, port = address.rsplit(":", 1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1.0)


def quick_material() -> Material:
    whole = Material.load("digits", seed=0)
    return replace(whole, recipe=replace(whole.recipe, epochs=4, copies=2))


def test_traffic_is_valid_and_no_id_comes_twice() -> None:
    """One input in ten is an attacker's, and attackers change."""
    material = quick_material()
    traffic = Traffic.drawn(material, 0)
    inputs = [*traffic.honest(30), *traffic.mixed(1000)]
    assert len({one.id for one in inputs}) == len(inputs)
    bad = [one.client for one in inputs if one.client.startswith("mallory")]
    assert len(bad) == 1000 / ATTACK_EVERY
    assert len(set(bad)) > 1
    models = {"digits": Expected("digits", material.input.shape, "uint8", 0, 16)}
    for one in inputs[:50]:
        found = decode_request(
            None, one.value, one.headers, partition=0, offset=0, models=models,
            limits=Settings().limits, default_model="",
        )  # fmt: skip
        assert isinstance(found, Request)
        assert (found.id.encode(), found.client) == (one.id, one.client)


def test_quantiles_and_slopes() -> None:
    """In milliseconds and megabytes a minute; of nothing they are not numbers."""
    found = Quantiles.of(np.arange(1001) / 1000)
    assert (found.n, found.values) == (1001, pytest.approx((500, 950, 990, 999)))
    assert math.isnan(Quantiles.of([]).values[0])
    assert slope([(t, 5 + t / 60) for t in range(5)]) == pytest.approx(1.0)
    assert math.isnan(slope([(0.0, 1.0), (1.0, 2.0)]))


async def test_the_whole_monitor_is_measured(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts, is saturated and sent to; every input has a score."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    report: Late = await latency.last(
        broker, "here", quick_material(), rates=[200.0], seconds=2.0, shares=[], told=said.append
    )
    (line,) = report.lines
    assert said
    assert report.saturation > 50
    assert 0 < report.first_score < latency.FIRST_WAIT
    assert line.lost == 0
    assert line.scores.n == 400
    assert 0 < line.scores.values[0] <= line.scores.values[-1] < 1000 * latency.PATIENCE
    json.dumps(report.figures())
