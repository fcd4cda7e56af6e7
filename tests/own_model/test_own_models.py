"""A user's own model, end to end: made, verified, loaded, attacked, poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import pytest
from acme import data

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import load, survey
from nnsec.suite import Scored
from tests.own_model.conftest import Own


def test_it_is_verified_and_loaded_to_the_last_bit(own: Own) -> None:
    """What a worker loads scores exactly as what was made."""
    registry, trusted = Registry(str(own.registry)), (own.key.public,)
    assert survey(registry, own.name, release_keys=trusted).digests == {1: own.made.digest}
    loaded = load(registry, own.name, 1, release_keys=trusted, spec=own.spec)
    first, second = (one.suite.score(own.fresh) for one in (own.made.checkpoint, loaded))
    for field in fields(Scored):
        assert getattr(first, field.name).tobytes() == getattr(second, field.name).tobytes()
    assert loaded.check_golden().whole


def test_a_score_does_not_depend_on_the_rows_beside_it(own: Own) -> None:
    """BatchNorm and dropout are in evaluation mode: alone or among others is the same."""
    suite = own.made.checkpoint.suite
    whole = suite.score(own.fresh[:50])
    for rows in (slice(0, 1), slice(7, 9), slice(10, 50)):
        part = suite.score(own.fresh[rows])
        assert part.score.tobytes() == whole.score[rows].tobytes()
        assert part.prediction.tobytes() == whole.prediction[rows].tobytes()


def test_clean_inputs_pass_and_attacks_are_flagged(own: Own) -> None:
    """Attacks that change the answer, at 0.2 of the range, are told from clean inputs."""
    suite = own.made.checkpoint.suite
    clean = suite.score(own.fresh)
    assert (clean.prediction == own.labels).mean() > 0.85
    # At most the 95 % point of what was promised, and three deviations of counting.
    allowed = own.made.manifest.calibration.false_positive_rate[1] * len(own.fresh)
    assert clean.flag.sum() <= allowed + 3 * np.sqrt(allowed)
    x, success = own.attacked(0.2)
    assert success.sum() > 50
    assert suite.score(x).flag[success].mean() > 0.7


def test_the_suite_fits_the_input(owns: Mapping[str, Own]) -> None:
    """What needs images stays out of a vector model's suite, and is in that of images."""
    images, vectors = (set(owns[n].made.manifest.detectors) for n in ("pictures", "vectors"))
    assert "feature_squeezing" in images
    assert "feature_squeezing" not in vectors
    assert vectors < images
    assert {"energy", "knn", "mahalanobis", "input_forest", "input_zscore"} <= vectors


@pytest.mark.parametrize(("name", "width"), [("pictures", 32), ("headless", 32), ("vectors", 32)])
def test_features_are_found(owns: Mapping[str, Own], name: str, width: int) -> None:
    """What goes into the last linear layer, or the last convolution where there is none."""
    assert owns[name].made.checkpoint.network.width == width


def test_clean_samples_are_accepted(own: Own) -> None:
    """An honest source that sends fresh samples loses few of them."""
    screens = own.made.checkpoint.screens
    rated = screens.rate(own.fresh, own.labels, None, screens.window())
    reasons = [rated.named(row) for row in np.flatnonzero(rated.quarantined)]
    assert rated.quarantined.mean() <= own.spec.alpha + 3 * np.sqrt(own.spec.alpha / len(rated)), (
        reasons
    )


def test_flipped_labels_and_repeats_are_quarantined(own: Own) -> None:
    """Half of one class under another label, and one sample sent many times."""
    screens = own.made.checkpoint.screens
    rows = np.flatnonzero(own.labels == 0)[:30]
    flipped = screens.rate(own.fresh[rows], np.ones(len(rows), int), None, screens.window())
    assert flipped.quarantined.mean() > 0.5
    again = np.repeat(own.fresh[:1], 20, axis=0)
    repeated = screens.rate(again, np.repeat(own.labels[:1], 20), None, screens.window())
    assert repeated.quarantined[5:].all()
    assert "duplicate" in repeated.named(19)


def test_a_trigger_is_found(owns: Mapping[str, Own]) -> None:
    """A patch in a corner of pictures, or one value in two features of vectors, under one label."""
    for name in ("pictures", "vectors"):
        own = owns[name]
        screens = own.made.checkpoint.screens
        rows = np.flatnonzero(own.labels != 0)[:60]
        x = own.fresh[rows].copy()
        if name == "pictures":
            x[:, :, 28:, 28:] = 255
        else:
            x[:, [3, 17]] = data.REACH - 0.5
        mixed = np.concatenate([x, own.fresh[own.labels == 0][:60]])
        labels = np.zeros(len(mixed), int)
        order = np.random.default_rng(0).permutation(len(mixed))
        rated = screens.rate(mixed[order], labels[order], None, screens.window())
        stamped = order < len(x)
        found = np.array(["trigger" in rated.named(row) for row in range(len(rated))])
        assert found[stamped].sum() > 0.5 * len(x), name
        assert not found[~stamped].any(), name
