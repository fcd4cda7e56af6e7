"""The demo's material: dealt out once, drawn by seed, on the wire's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nnsec.errors import ConfigError
from nnsec.network import Network
from nnsec.splits import Splits
from nnsec.suite import Suite
from workers.demo.material import EPSILONS, Material


@pytest.fixture(scope="module")
def material() -> Material:
    """Digits."""
    return Material.load("digits", seed=3)


@pytest.fixture(scope="module")
def network(material: Material) -> Network:
    """The first checkpoint's network."""
    return material.network(material.trained())


def _rows(x: NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in x]


def test_no_image_serves_two_ends(material: Material) -> None:
    """What the network learns, what clients send and what sources send are different images."""
    parts = [_rows(part.x) for part in (material.own, material.held, material.sampled)]
    assert [len(part) for part in parts] == [447, 170, 170]
    assert len({*parts[0], *parts[1], *parts[2]}) == 787
    assert len(material.reference_x) == 1010
    other = Material.load("digits", seed=4)
    assert _rows(other.held.x) != parts[1]


def test_at_least_400_inputs_calibrate(material: Material) -> None:
    """Split as a checkpoint splits it, and α says: above the second largest of them."""
    for seed in range(5):
        n = len(Splits.stratified(material.reference_y, seed=seed).calibrate)
        assert n >= 400
        assert 2 / (n + 1) <= material.spec.alpha < 3 / (n + 1)


def test_nothing_is_sent_twice(material: Material) -> None:
    """Thousands of honest inputs differ from each other, are on the grid, and rightly labelled."""
    found = material.honest(3000, seed=1)
    assert len(found) == len(set(_rows(found.x))) == 3000
    assert found.x.dtype == np.uint8
    assert found.x.max() <= 16
    again, other = (material.honest(3000, seed=seed) for seed in (1, 2))
    assert np.array_equal(again.x, found.x)
    assert not np.array_equal(other.x, found.x)
    counts = np.bincount(found.y, minlength=10)
    assert counts.min() > 100
    assert not set(_rows(material.samples(500, seed=1).x)) & set(_rows(found.x))


def test_drift_grows(material: Material) -> None:
    """Nothing at 0, and further from honest inputs the larger its amount."""
    amounts = np.repeat([0.0, 0.5, 1.0], 40)
    found = material.drifting(amounts, 5)
    plain = material.honest(120, seed=5)
    moved = np.abs(found.x.astype(int) - plain.x).mean((1, 2, 3)).reshape(3, 40).mean(1)
    assert moved[0] == 0
    assert moved[0] < moved[1] < moved[2]
    assert np.array_equal(found.y, plain.y)


def test_attacks_are_within_epsilon_and_fool_the_network(
    material: Material, network: Network
) -> None:
    """In equal shares, at most ε and a rounding away, and successful where they say so."""
    attack = material.attack(network, 90, seed=2)
    assert [int((attack.epsilon == radius).sum()) for radius in EPSILONS] == [30, 30, 30]
    away = np.abs(attack.x.astype(int) - attack.original.astype(int)).max((1, 2, 3))
    assert (away <= np.ceil(16 * attack.epsilon)).all()
    won = attack.successful(network)
    assert (network.forward(attack.x[won]).prediction != attack.y[won]).all()
    assert (network.forward(attack.original[won]).prediction == attack.y[won]).all()
    shares = [won[attack.epsilon == radius].mean() for radius in EPSILONS]
    assert shares[0] < shares[2]
    assert shares[2] > 0.6
    assert not won[attack.successful(network) != won].any()


def test_training_is_told_and_seeded(material: Material) -> None:
    """Progress ends it; torch's own generator is left as it was."""
    before = torch.get_rng_state()

    def stop(done: int, steps: int, loss: float) -> None:
        assert 0 < done <= steps
        assert loss > 0
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        material.trained(stop)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_demos_promise_holds(material: Material, network: Network) -> None:
    """Nine in ten successful attacks are flagged, seven in ten at each ε, 2 % of honest inputs."""
    suite = Suite.fit(
        network, material.reference_x, material.reference_y,
        splits=Splits.stratified(material.reference_y, seed=0), seed=0,
        alpha=material.spec.alpha,
    )  # fmt: skip
    honest, attack = material.honest(600, seed=1), material.attack(network, 150, seed=2)
    won, flag = attack.successful(network), suite.score(attack.x).flag
    assert suite.score(honest.x).flag.mean() <= 0.02
    assert flag[won].mean() >= 0.9
    for radius in EPSILONS:
        assert flag[won & (attack.epsilon == radius)].mean() >= 0.7


def test_mnist_needs_its_file(tmp_path: Path) -> None:
    """A data set that is not there is a clear error."""
    with pytest.raises(ConfigError, match="mnist"):
        Material.load("mnist", str(tmp_path), seed=0)
