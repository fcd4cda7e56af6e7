"""The benchmark of detection: its figures are what they are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from nnsec import detectors
from nnsec.network import Network
from workers.bench import detection
from workers.bench.detection import Line, Rate, Report, joined, measure, once
from workers.cli import app
from workers.demo.material import EPSILONS, Material


@pytest.fixture(scope="module")
def report() -> Report:
    """One seed on digits, with a network trained for a moment."""
    whole = Material.load("digits", seed=0)
    material = replace(whole, recipe=replace(whole.recipe, epochs=4, copies=2))
    return once(material, material.network(material.trained()), honest=300, attacks=90)


def test_intervals_are_clopper_and_pearsons() -> None:
    """Against SciPy's, at the ends too; no trial says nothing."""
    for hits, n in ((0, 20), (3, 20), (20, 20)):
        wanted = binomtest(hits, n).proportion_ci(method="exact")
        assert Rate(hits, n).interval == pytest.approx((wanted.low, wanted.high))
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert Rate(0, 0).value == 0.0
    assert Rate(1, 2).plus(Rate(2, 3)) == Rate(3, 5)


def test_every_detector_is_measured_at_every_epsilon(report: Report) -> None:
    """What discovery finds, and the fused score last; the fused one does what the demo needs."""
    names = [line.detector for line in report.lines]
    assert names == [n for n in (*detectors.names(), detection.FUSED) for _ in EPSILONS]
    assert all(0 <= line.auroc <= 1 for line in report.lines)
    fused = report.lines[-3:]
    assert all(line.auroc > 0.95 and line.found.value > 0.7 for line in fused)
    assert fused[0].benign.value <= 0.02
    assert len({line.found.n for line in report.lines if line.epsilon == 0.3}) == 1
    assert report.points[0] >= 400
    assert report.accuracy.value > 0.7
    assert 0.03 < report.honest_in_doubt.value < 0.25
    for line, doubt in zip(fused, report.attacks_in_doubt, strict=True):
        assert doubt.n == line.found.n
        assert doubt.hits >= line.found.hits  # what is flagged was in doubt


def _report(seed: int, auroc: float) -> Report:
    line = Line("energy", 0.1, auroc, Rate(seed, 10), Rate(1, 100))
    doubt = (Rate(9, 100), (Rate(3, 4), Rate(5, 5), Rate(5, 5)))
    return Report("digits", 0.005, (seed,), (404,), Rate(90, 100), *doubt, (line,))


def test_seeds_are_added_up() -> None:
    """Counts are added and AUROC is averaged over the seeds in which an attack succeeded."""
    whole = joined([_report(3, 0.8), _report(4, 0.6), _report(5, float("nan"))])
    assert whole.seeds == (3, 4, 5)
    assert whole.points == (404, 404, 404)
    assert whole.accuracy == Rate(270, 300)
    assert whole.honest_in_doubt == Rate(27, 300)
    assert whole.attacks_in_doubt == (Rate(9, 12), Rate(15, 15), Rate(15, 15))
    assert whole.figures()["in_doubt"]["by_epsilon"]["0.1"] == {"in_doubt": 9, "n": 12}
    (line,) = whole.lines
    assert line.found == Rate(12, 30)
    assert line.benign == Rate(3, 300)
    assert line.auroc == pytest.approx(0.7)
    assert joined([_report(5, float("nan"))]).figures()["detectors"][0]["auroc"] is None


def test_no_successful_attack_has_no_auroc() -> None:
    """Where nothing succeeded, nothing is claimed."""
    assert np.isnan(detection._auroc(np.arange(3.0), np.zeros(0)))
    assert detection._auroc(np.arange(3.0), np.arange(3.0) + 9) == 1.0


def test_the_command_shows_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    """Rich for people, a file for programs; both from the same figures."""

    def measured(*args: Any, seeds: range, **options: Any) -> Any:
        assert args == ("digits", None)
        assert options == {"honest": 1000, "attacks": 450}
        return iter([report for _ in seeds])

    monkeypatch.setattr(detection, "measure", measured)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app, ["bench", "detection", "--seeds", "2", "--json", "figures.json"]
    )
    assert result.exit_code == 0, result.output
    assert "local_likelihood" in result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["by_seed"]) == 2
    fused = figures["detectors"][-1]
    assert fused["detector"] == "fused"
    assert fused["found"]["n"] == 2 * report.lines[-1].found.n
    assert fused["found"]["flagged"] == 2 * report.lines[-1].found.hits


def test_each_seed_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed deals out other images and trains another network."""
    seen: list[tuple[int, int]] = []

    def fake(material: Material, network: Network, **options: Any) -> Report:
        seen.append((material.seed, network.classes))
        return _report(material.seed, 0.5)

    monkeypatch.setattr(detection, "once", fake)
    recipe = detection.Material.load("digits", seed=0).recipe
    monkeypatch.setattr(Material, "trained", lambda self: _untrained(recipe.architecture))
    found = list(measure("digits", None, seeds=(6, 7), honest=5, attacks=3))
    assert [report.seeds for report in found] == [(6,), (7,)]
    assert seen == [(6, 10), (7, 10)]


def _untrained(architecture: str) -> Any:
    from nnsec.models import build

    return build(architecture, architecture)
