"""The benchmark of the suite's cost: its figures are what they are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nnsec import detectors
from nnsec.network import Network
from nnsec.settings import Input
from nnsec.splits import Splits
from nnsec.suite import Suite
from workers.bench import suite as bench
from workers.bench.suite import Line, Report, as_written, measure
from workers.cli import app
from workers.demo.material import Material


@pytest.fixture(scope="module")
def report() -> Report:
    """Digits, timed for moments."""
    return measure("digits", None, seed=0, batches=(1, 40), rounds=1, seconds=0.01)


def test_all_is_timed_beside_the_model_alone(report: Report) -> None:
    """The suite costs more than the model; one at a time costs more an input than many."""
    assert [line.batch for line in report.lines] == [1, 40]
    for line in report.lines:
        assert line.whole > line.bare > 0
        assert line.doubtful > line.bare
        assert line.ratio == pytest.approx(line.bare / line.whole, rel=1e-6)
    single, many = report.lines
    assert single.whole > many.whole
    assert single.forward > many.forward
    assert tuple(report.detectors) == detectors.names()
    assert report.detectors["feature_squeezing"] > report.detectors["energy"] > 0


def test_batches_hold_the_share_in_doubt_that_they_say(report: Report) -> None:
    """About 30 % of rows where that is asked for, whatever the batch size."""
    for line in report.lines:
        assert line.in_doubt_doubtful == pytest.approx(bench.IN_DOUBT, abs=0.03)
        assert 0.02 < line.in_doubt < 0.25
    whole = Material.load("digits", seed=0)
    material = replace(whole, recipe=replace(whole.recipe, epochs=1))
    x, y = material.reference_x, material.reference_y
    suite = Suite.fit(
        material.network(material.trained()), x, y,
        splits=Splits.stratified(y, seed=0), seed=0, alpha=0.005,
    )  # fmt: skip
    pool = material.honest(400, seed=1).x
    through = suite.through(pool)
    for batch in (1, 32, 256):
        dealt = bench._batches(pool, through, batch, 0.3)
        assert {len(x) for x in dealt} == {batch}
        assert suite.through(np.concatenate(dealt)).mean() == pytest.approx(0.3, abs=0.01)


def test_rounds_do_all_works_in_turn() -> None:
    """A round is one row: what it compares ran under the same load."""
    calls: list[str] = []
    found = bench._rounds([lambda: calls.append("a"), lambda: calls.append("b")], 3, 0.0)
    assert found.shape == (3, 2)
    assert (found > 0).all()
    assert "".join(calls[-6:]) == "ababab"


def test_the_command_shows_tables_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich for people, a file for programs; both from the same figures."""
    line = Line(256, 300.0, 310.0, 450.0, 620.0, 0.667, 0.484, 0.11, 0.3)
    given: dict[str, Any] = {}

    def measured(*args: Any, **options: Any) -> Report:
        given.update(options, args=args)
        return Report("mnist", "cpu", 1, 8, (line,), {"energy": 0.25})

    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app,
        ["bench", "suite", "--dataset", "mnist", "--data", "d", "--rounds", "3", "--threads", "0",
         "--json", "suite.json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert given == {"args": ("mnist", "d"), "seed": 0, "rounds": 3}
    assert all(word in result.output for word in ("256", "0.67", "0.48", "energy", "11%", "30%"))
    figures = json.loads((tmp_path / "suite.json").read_text())
    assert figures["lines"][0]["ratio"] == 0.667
    assert figures["detectors"] == {"energy": 0.25}


def test_the_bare_model_has_nothing_of_ours_on_it() -> None:
    """Else it kept the inputs of all layers of every pass, and lost to us for that."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    network = Network(module, Input(shape=(1, 16, 16)), device="cpu")
    plain = as_written(network)
    x = np.zeros((2, 1, 16, 16), np.float32)
    with torch.inference_mode():
        found = plain(network.scale(x))
    assert torch.allclose(found, network.forward(x).logits, atol=1e-6)
    plain(network.scale(x))
    assert network._seen == []
    assert plain[2].weight.is_contiguous()  # type: ignore[index]
    assert not network.module[2].weight.is_contiguous()  # type: ignore[index]
