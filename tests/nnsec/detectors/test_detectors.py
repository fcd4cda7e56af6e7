"""Each detector against its definition, written another way."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft, stats
from scipy.ndimage import median_filter
from sklearn.ensemble import IsolationForest

from nnsec import attacks, detectors, transforms
from nnsec.detectors._gaussian import class_means, square_distances, whitener
from nnsec.detectors._statistics import IMAGE, VECTOR, statistics
from nnsec.detectors.feature_squeezing import cut, median
from nnsec.detectors.input_forest import SAMPLES, TREES, InputForest
from nnsec.detectors.knn import nearest
from nnsec.detectors.local_likelihood import MEANS, RANGES, VALUES, LocalLikelihood, codes
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Forward


def _forward(inputs: torch.Tensor, logits: torch.Tensor | None = None) -> Forward:
    found = torch.zeros(len(inputs), 2) if logits is None else logits
    return Forward(inputs, found, torch.zeros(len(inputs), 1))


def _network(**fields: Any) -> Any:
    """What a detector that asks little of its network needs."""
    return SimpleNamespace(**fields)


def test_confidence_and_energy_are_their_formulas() -> None:
    """−log(p / (1 − p)) and −log Σ exp, and neither saturates."""
    logits = torch.tensor([[1.0, 2.0, 0.5], [40.0, 0.0, 0.0], [900.0, 0.0, 1.0]])
    forward = _forward(torch.zeros(3, 1), logits)
    network = _network()
    confidence = detectors.make("confidence").score(forward, network)
    energy = detectors.make("energy").score(forward, network)
    p = np.exp(logits[0].numpy()).max() / np.exp(logits[0].numpy()).sum()
    assert confidence[0] == pytest.approx(-np.log(p / (1 - p)), rel=1e-6)
    assert confidence[1:] == pytest.approx([np.log(2) - 40, np.log1p(np.e) - 900], rel=1e-6)
    assert energy[0] == pytest.approx(-np.log(np.exp(logits[0].numpy()).sum()), rel=1e-6)
    assert energy[2] == pytest.approx(-900)


def test_statistics_are_their_definitions() -> None:
    """Each column against SciPy or the plain formula, on colour images and on vectors."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (5, 3, 6, 8)).astype(np.float32)
    x[0, 0, 0, :4] = 0
    found = statistics(_forward(torch.from_numpy(x)), _network(image=True))
    assert found.shape == (5, len(IMAGE))
    column = dict(zip(IMAGE, found.T, strict=True))
    flat = x.reshape(5, -1).astype(np.float64)
    close = {"rel": 1e-3, "abs": 1e-5}
    assert column["mean"] == pytest.approx(flat.mean(1), **close)
    assert column["std"] == pytest.approx(flat.std(1), **close)
    assert column["skewness"] == pytest.approx(stats.skew(flat, axis=1), **close)
    assert column["kurtosis"] == pytest.approx(stats.kurtosis(flat, axis=1, fisher=False), **close)
    assert column["clipping_ratio"] == pytest.approx(((flat <= 0) | (flat >= 1)).mean(1), **close)
    assert column["largest_step"] == pytest.approx(np.abs(np.diff(flat, axis=1)).max(1), **close)
    shares = [np.bincount((row * 16).astype(int), minlength=16) / len(row) for row in flat]
    assert column["entropy"] == pytest.approx([stats.entropy(s) for s in shares], **close)
    spectrum = np.abs(np.fft.rfft2(x)).reshape(5, -1) / np.sqrt(48)
    assert column["fft_mean"] == pytest.approx(spectrum.mean(1), **close)
    assert column["fft_std"] == pytest.approx(spectrum.std(1, ddof=1), **close)
    right, down = np.abs(np.diff(x, axis=3)), np.abs(np.diff(x, axis=2))
    assert column["gradient_horizontal"] == pytest.approx(right.mean((1, 2, 3)), **close)
    assert column["gradient_vertical"] == pytest.approx(down.mean((1, 2, 3)), **close)
    energy = fft.dctn(x, axes=(2, 3), norm="ortho") ** 2
    high = np.add.outer(np.arange(6) / 6, np.arange(8) / 8) >= 1
    share = energy[..., high].sum((1, 2)) / energy.sum((1, 2, 3))
    assert column["dct_high_energy"] == pytest.approx(share, **close)
    vectors = statistics(_forward(torch.from_numpy(flat[:, :1]).float()), _network(image=False))
    assert vectors.shape == (5, len(VECTOR))
    assert np.isfinite(vectors).all()


def test_squeezers_are_their_definitions() -> None:
    """Eight values are left, and the median mirrors the border as SciPy's does."""
    x = np.random.default_rng(0).uniform(0, 1, (4, 2, 6, 7)).astype(np.float32)
    assert len(np.unique(cut(torch.from_numpy(x)))) <= 8
    wanted = np.stack([[median_filter(plane, 3, mode="mirror") for plane in image] for image in x])
    assert np.array_equal(median(torch.from_numpy(x)).numpy(), wanted)


def test_the_forest_is_scikit_learns(on_images: Any) -> None:
    """Trees as arrays give scikit-learn's own scores."""
    train, held = (on_images.splits.train, on_images.splits.calibrate)
    network = on_images.network
    reference, fresh = network.forward(on_images.x[train]), network.forward(on_images.x[held])
    ours = InputForest()
    ours.fit(reference, on_images.y[train], network, 5)
    theirs = IsolationForest(n_estimators=TREES, max_samples=SAMPLES, random_state=5)
    theirs.fit(statistics(reference, network).astype(np.float32))
    wanted = -theirs.score_samples(statistics(fresh, network).astype(np.float32))
    assert ours.score(fresh, network) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("feature", lambda a: a - 1),
        ("feature", lambda a: a[:, :-1]),
        ("feature", lambda a: a[0]),
        ("threshold", lambda a: a[:, :-1]),
        ("length", lambda a: a[:, :-1]),
        ("feature", lambda a: a.astype(float)),
    ],
)
def test_crooked_trees_are_refused(on_images: Any, name: str, change: Any) -> None:
    """Trees that are not full, or cut what does not exist, never get as far as scoring."""
    detector = InputForest()
    rows = on_images.splits.train
    network = on_images.network
    detector.fit(network.forward(on_images.x[rows]), on_images.y[rows], network, 0)
    state = detector.state()
    with pytest.raises(Unsafe, match="trees"):
        InputForest().restore(state | {name: change(state[name])})


def test_whitened_lengths_are_mahalanobis_distances() -> None:
    """Against the inverse covariance, where there are enough samples to need no shrinkage."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 4))
    values = rng.normal(size=(20_000, 4)) @ mix
    root = whitener(values)
    x, centres = rng.normal(size=(7, 4)), rng.normal(size=(3, 4))
    inverse = np.linalg.inv(values.T @ values / len(values))
    gap = x[:, None] - centres[None]
    wanted = np.einsum("ncd,de,nce->nc", gap, inverse, gap)
    assert square_distances(x, centres, root) == pytest.approx(wanted, rel=0.02)


def test_an_absent_class_has_the_mean_of_all() -> None:
    """Reference data without a class still make a detector."""
    values = np.array([[0.0], [2.0], [7.0]])
    means = class_means(values, np.array([0, 0, 2]), 3)
    assert means[:, 0].tolist() == [1.0, 3.0, 7.0]


def test_neighbours_are_those_of_the_predicted_class() -> None:
    """The mean of the five nearest with that label; a class without references is far away."""
    references = np.arange(12, dtype=np.float32)[:, None]
    labels = np.array([0, 1] * 6)
    found = nearest(torch.tensor([[0.0], [0.0], [0.0]]), np.array([0, 1, 2]), references, labels)
    assert found[:2] == pytest.approx([4.0, 5.0])
    assert found[2] > 1e8


def test_local_likelihood_is_of_counts() -> None:
    """−log of smoothed counts, by neighbourhood; a neighbourhood never seen tells what is usual."""
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1] = 1.0
    code = codes(image)[0, 0]
    assert int(code[1, 1]) == VALUES - 1  # bright among dark ones
    beside = (2 * RANGES + RANGES - 1) * VALUES  # a quarter of the neighbours, at full range
    assert int(code[0, 1]) == int(code[1, 2]) == beside
    assert int(code[3, 3]) == 0
    detector = LocalLikelihood()
    network = _network()
    detector.fit(_forward(image), np.zeros(1, np.int64), network, 0)
    assert detector.surprise.shape == (MEANS * RANGES, VALUES)
    probability = np.exp(-detector.surprise)
    assert probability.sum(1) == pytest.approx(np.ones(MEANS * RANGES))
    usual = (np.array([15.0, *[0.0] * 14, 1.0]) + 1) / 32
    assert probability[-1] == pytest.approx(usual)
    assert probability[0, -1] == pytest.approx((1 + 8 * usual[-1]) / (12 + 8))
    with pytest.raises(Unsafe, match="another size"):
        LocalLikelihood().restore({"surprise": detector.surprise[:-1]})


def test_local_likelihood_sees_the_noise_of_an_attack(on_images: Any) -> None:
    """At a threshold that a hundredth of clean images pass, nearly all attacks lie above."""
    network, rows = on_images.network, on_images.splits.calibrate
    detector = LocalLikelihood()
    train = on_images.splits.train
    detector.fit(network.forward(on_images.x[train]), on_images.y[train], network, 0)
    clean = detector.score(network.forward(on_images.x[rows]), network)
    some = rows[:100]
    attacked = attacks.pgd(
        network.module, network.scale(on_images.x[some]), torch.from_numpy(on_images.y[some]),
        epsilon=0.1, steps=20, seed=0,
    )  # fmt: skip
    sent = transforms.to_grid(attacked.numpy(), network.input)
    scores = detector.score(network.forward(sent), network)
    assert (scores > np.quantile(clean, 0.99)).mean() > 0.9


def test_an_unknown_detector_names_the_nearest() -> None:
    """A name in the configuration that is none says which one was meant."""
    with pytest.raises(ConfigError, match="mahalanobis"):
        detectors.make("mahalanobi")


def test_two_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second detector of a name would take the first one's columns."""
    source = (
        "from nnsec.detectors.energy import Energy\nclass Second(Energy):\n    name = 'energy'\n"
    )
    (tmp_path / "second_energy.py").write_text(source, "utf-8")
    monkeypatch.setattr(detectors, "__path__", [*detectors.__path__, str(tmp_path)])
    detectors.found.cache_clear()
    try:
        with pytest.raises(ConfigError, match="two detectors are named 'energy'"):
            detectors.found()
    finally:
        sys.modules.pop("nnsec.detectors.second_energy", None)
        vars(detectors).pop("second_energy", None)
        detectors.found.cache_clear()
