"""The detector that the docs show as one file is found, fitted, scored with and measured."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnsec import detectors
from nnsec.network import Network
from nnsec.splits import Splits
from nnsec.suite import Suite
from workers.bench.detection import once
from workers.demo.material import Material

PAGE = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text("utf-8")
NAME = "noise_consistency"


@pytest.fixture
def added(tmp_path: Path) -> Iterator[None]:
    """The page's program as one more file of the package, and nothing else."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / f"{NAME}.py").write_text(program, "utf-8")
    detectors.__path__.append(str(tmp_path))
    detectors.found.cache_clear()
    yield
    detectors.__path__.remove(str(tmp_path))
    sys.modules.pop(f"{detectors.__name__}.{NAME}", None)
    vars(detectors).pop(NAME, None)
    detectors.found.cache_clear()


@pytest.fixture(scope="module")
def material() -> Material:
    """Digits, for a network that is trained for a moment."""
    whole = Material.load("digits", seed=0)
    return replace(whole, recipe=replace(whole.recipe, epochs=2, copies=1))


@pytest.fixture(scope="module")
def network(material: Material) -> Network:
    """The network."""
    return material.network(material.trained())


def test_the_page_lists_every_detector() -> None:
    """A row for each detector that is found, and for no other."""
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(set(listed)) == sorted(detectors.names())


def test_one_file_is_all_it_takes(added: None, material: Material, network: Network) -> None:
    """It is in scores, in the calibration and in the checkpoint's arrays, and comes back."""
    x, y = material.reference_x, material.reference_y
    splits = Splits.stratified(y, seed=0)
    suite = Suite.fit(network, x, y, splits=splits, seed=0, alpha=0.005)
    assert NAME in suite.names
    column = suite.names.index(NAME)
    clean = material.honest(400, seed=1).x
    scored, through = suite.score(clean), suite.through(clean)
    assert scored.p_values.shape == (400, len(suite.names))
    assert len(np.unique(scored.p_values[through, column])) > 20
    assert (scored.p_values[~through, column] == 1).all()
    assert len(suite.cascade.fusion.mean) == len(suite.names)
    assert suite.columns.shape == (suite.calibration.n, len(suite.names))
    state = suite.state()
    assert state[f"detector.{NAME}.noise"].shape == (4, 1, 8, 8)
    again = Suite.restore(state, network).score(clean)
    assert np.array_equal(again.p_values, scored.p_values)
    assert np.array_equal(again.score, scored.score)


def test_it_is_in_the_benchmark(added: None, material: Material, network: Network) -> None:
    """With lines of its own, at every ε."""
    report = once(material, network, honest=64, attacks=30)
    lines = [line for line in report.lines if line.detector == NAME]
    assert [line.epsilon for line in lines] == [0.1, 0.2, 0.3]
    assert all(line.benign.n == 64 for line in lines)
