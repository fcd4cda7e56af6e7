from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nnsec import attacks, detectors, transforms
from nnsec.cascade import LARGEST
from nnsec.detectors.energy import Energy
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Forward
from nnsec.splits import Splits
from nnsec.suite import Scored, Suite, choose

FIGURES = Scored.__slots__


def _same(one: Scored, two: Scored) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in FIGURES)


@pytest.fixture(scope="module")
def suite(on_images: Any) -> Suite:
    """All detectors, fitted on digits."""
    found: Suite = on_images.suite()
    return found


@pytest.fixture(scope="module")
def held(on_images: Any) -> NDArray[np.uint8]:
    """Calibration inputs of that suite."""
    x: NDArray[np.uint8] = on_images.x[on_images.splits.calibrate]
    return x


def test_calibration_inputs_are_flagged_at_alpha(suite: Suite, held: NDArray[np.uint8]) -> None:
    """Of the n calibration inputs ⌊α (n + 1)⌋ − 1 are flagged, by the rule that all others meet."""
    scored = suite.score(held)
    k = int(suite.calibration.alpha * (suite.calibration.n + 1))
    assert scored.flag.sum() == k - 1
    assert np.array_equal(np.sort(scored.score), suite.calibration.scores.astype(np.float32))
    assert (scored.p_value > 0).all()
    assert (scored.p_value <= 1).all()


def test_figures_have_their_types_and_agree(suite: Suite, held: NDArray[np.uint8]) -> None:
    """Shapes, types, and what follows from what: the columns are the detectors in order."""
    scored = suite.score(held[:50])
    assert suite.names == detectors.names()
    assert scored.p_values.shape == (50, len(suite.names))
    assert scored.p_values.dtype == scored.score.dtype == scored.confidence.dtype == np.float32
    assert ((scored.p_values > 0) & (scored.p_values <= 1)).all()
    forward = suite.network.forward(held[:50])
    assert np.array_equal(scored.prediction, forward.prediction)
    wanted = forward.logits.softmax(1).amax(1).numpy()
    assert scored.confidence == pytest.approx(wanted, rel=1e-5)
    assert np.array_equal(scored.features, forward.features.numpy())
    assert np.array_equal(scored.level, suite.calibration.level(scored.score))
    assert (scored.coverage == 1).all()
    assert not scored.tier.any()
    raw = suite.raw_scores(held[:50])
    energy = suite.names.index("energy")
    reference = suite.columns[:, energy]
    wanted = (1 + (reference[None] >= raw[:, [energy]]).sum(1)) / (len(reference) + 1)
    assert scored.p_values[:, energy] == pytest.approx(wanted)


def test_rows_are_scored_by_themselves(suite: Suite, held: NDArray[np.uint8]) -> None:
    """One by one, all at once, or beside noise: the same to the last bit."""
    whole = suite.score(held[:70])
    singly = [suite.score(row[None]) for row in held[:5]]
    noise = np.random.default_rng(0).integers(0, 17, (9, 1, 8, 8)).astype(np.uint8)
    beside = suite.score(np.concatenate([noise, held[:70]]))
    for name in FIGURES:
        figure = getattr(whole, name)
        assert np.array_equal(np.concatenate([getattr(one, name) for one in singly]), figure[:5])
        assert np.array_equal(getattr(beside, name)[9:], figure)


def test_attacks_are_flagged_and_honest_inputs_are_not(suite: Suite, on_images: Any) -> None:
    """PGD rounded to the grid, at an ε that the eye hardly sees, against images never seen."""
    network, rows = suite.network, on_images.splits.calibrate[:120]
    x, y = on_images.x[rows], on_images.y[rows]
    honest = suite.score(transforms.honest(x, network.input, 9))
    moved = attacks.pgd(
        network.module, network.scale(x), torch.from_numpy(y), epsilon=0.1, steps=20, seed=0
    )
    attacked = suite.score(transforms.to_grid(moved.numpy(), network.input))
    won = (attacked.prediction != y) & (network.forward(x).prediction == y)
    assert won.sum() > 40
    assert attacked.flag[won].mean() > 0.9
    assert honest.flag.mean() < 0.05


def test_fitting_is_a_function_of_data_and_seed(on_images: Any, suite: Suite) -> None:
    """Twice the same gives the same bytes; state and network give back the same suite."""
    again = on_images.suite()
    assert {k: v.tobytes() for k, v in again.state().items()} == {
        k: v.tobytes() for k, v in suite.state().items()
    }
    restored = Suite.restore(suite.state(), suite.network)
    assert _same(restored.score(on_images.x[:40]), suite.score(on_images.x[:40]))
    other = on_images.suite(seed=1)
    assert other.state()["detector.input_forest.feature"].tobytes() != (
        suite.state()["detector.input_forest.feature"].tobytes()
    )


def test_extremes_get_finite_figures(suite: Suite) -> None:
    """Black and white images are far from all that is clean, and nothing overflows."""
    x = np.stack([np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 16, np.uint8)])
    scored = suite.score(x)
    for name in ("score", "p_value", "confidence"):
        assert np.isfinite(getattr(scored, name)).all()
    assert scored.flag.all()


def test_a_vector_model_does_without_what_needs_images(on_vectors: Any) -> None:
    """Detectors that need images stay out by themselves, and are an error where they are named."""
    suite = on_vectors.suite()
    assert "feature_squeezing" not in suite.names
    assert "local_likelihood" not in suite.names
    assert "input_forest" in suite.names
    x = on_vectors.x[on_vectors.splits.calibrate]
    far = suite.score(np.full((1, 6), 4.0, np.float32))
    assert far.flag.all()
    assert suite.score(x).flag.mean() < 0.02
    with pytest.raises(ConfigError, match="'feature_squeezing' needs images"):
        choose(on_vectors.network, ("energy", "feature_squeezing"))


def test_named_detectors_are_the_columns_in_their_order(on_images: Any) -> None:
    """The configuration's `detectors` decides which, and in which order."""
    suite = on_images.suite(detectors=("energy", "confidence", "knn"))
    assert suite.names == ("energy", "confidence", "knn")
    assert suite.score(on_images.x[:3]).p_values.shape == (3, 3)


def test_a_figure_that_is_not_finite_is_the_most_suspicious(
    on_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that says NaN flags the input; it does not hide it."""
    suite = on_images.suite(detectors=("energy", "knn"))
    before = suite.score(on_images.x[:4])
    plain = Energy.score

    def broken(self: Energy, *args: Any) -> NDArray[np.float64]:
        found = plain(self, *args)
        found[0] = np.nan
        return found

    monkeypatch.setattr(Energy, "score", broken)
    after = suite.score(on_images.x[:4])
    assert after.flag[0]
    assert np.isfinite(after.score).all()
    assert np.array_equal(after.score[1:], before.score[1:])


def test_a_row_without_an_answer_is_the_most_suspicious(
    on_vectors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN or infinity from the model, in whichever detectors: the largest score, confidence 0."""
    suite, network = on_vectors.suite(detectors=("input_zscore", "confidence")), on_vectors.network
    x = on_vectors.x[:6]
    before, run = suite.score(x), network.from_scaled

    def broken(scaled: torch.Tensor) -> Forward:
        found: Forward = run(scaled)
        found.logits[1] = torch.nan
        found.logits[2, 0], found.logits[3, 1] = torch.inf, -torch.inf
        found.features[4] = torch.inf
        return found

    monkeypatch.setattr(network, "from_scaled", broken)
    after = suite.score(x)
    odd = np.array([False, True, True, True, True, False])
    assert (after.confidence[odd] == 0).all()
    assert (after.score[odd] == np.float32(LARGEST)).all()
    assert (after.level[odd] == 5).all()
    assert after.flag[odd].all()
    assert after.p_value[odd] == pytest.approx(1 / (suite.calibration.n + 1))
    for name in ("confidence", "score", "p_value", "p_values"):
        assert np.isfinite(getattr(after, name)).all()
    for name in FIGURES:
        assert np.array_equal(getattr(after, name)[~odd], getattr(before, name)[~odd])


def test_too_little_data_is_a_clear_error(on_images: Any) -> None:
    """The message says which part lacks inputs."""
    y = on_images.y[:24]
    splits = Splits(*(np.arange(8) + 8 * k for k in range(3)), np.arange(0))
    with pytest.raises(ConfigError, match="too few to fuse"):
        Suite.fit(on_images.network, on_images.x[:24], y, splits=splits, seed=0, alpha=0.1)


Change = Callable[[dict[str, NDArray[Any]]], object]


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda s: s.pop("detectors"), Unsafe, "incomplete"),
        (lambda s: s.pop("columns"), Unsafe, "incomplete"),
        (lambda s: s.update(detectors=np.frombuffer(b"\xff", np.uint8)), Unsafe, "incomplete"),
        (lambda s: s.update(detectors=np.frombuffer(b"os", np.uint8)), ConfigError, "no detector"),
        (
            lambda s: s.update(detectors=np.frombuffer(b"knn,knn", np.uint8)),
            Unsafe,
            "one twice",
        ),
        (lambda s: s.update(columns=s["columns"][:-1]), Unsafe, "do not fit"),
        (lambda s: s.update(columns=s["columns"] * np.nan), Unsafe, "not finite"),
        (lambda s: s.pop("detector.knn.references"), Unsafe, "knn"),
        (lambda s: s.pop("fusion.mean"), Unsafe, "fusion"),
        (lambda s: s.pop("calibration.alpha"), Unsafe, "calibration"),
        (
            lambda s: s.update(
                {"detector.mahalanobis.means": s["detector.mahalanobis.means"][:, 1:]}
            ),
            Unsafe,
            "'mahalanobis' does not fit the model",
        ),
        (
            lambda s: s.update(
                {"detector.input_forest.feature": s["detector.input_forest.feature"] + 99}
            ),
            Unsafe,
            "'input_forest' does not fit the model",
        ),
        (
            lambda s: s.update({"detector.knn.references": s["detector.knn.references"][:, :3]}),
            Unsafe,
            "'knn' does not fit the model",
        ),
    ],
)
def test_hostile_state_is_refused(
    suite: Suite, change: Change, error: type[Exception], word: str
) -> None:
    """What is missing, too much or of another model is a named error before anything is scored."""
    state = suite.state()
    change(state)
    with pytest.raises(error, match=word):
        Suite.restore(state, suite.network)
