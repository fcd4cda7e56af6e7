"""Creation: what is made is what is loaded, to the last bit, and every mistake is named."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from safetensors.torch import save, save_file

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Metrics, Parent, gather, load
from nnsec.checkpoints.creation import STEPS
from nnsec.checkpoints.provenance import batch
from nnsec.errors import ConfigError, Unsafe
from nnsec.settings import ModelTable
from nnsec.splits import Splits
from nnsec.suite import Scored
from tests.nnsec.checkpoints.small_checkpoint import NOW, VECTOR_SPEC, Vectors


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry, as a folder."""
    return Registry(str(tmp_path / "r"))


def same(a: Scored, b: Scored) -> bool:
    """Whether two results agree to the last bit in every figure."""
    return all(
        getattr(a, f.name).dtype == getattr(b, f.name).dtype
        and getattr(a, f.name).tobytes() == getattr(b, f.name).tobytes()
        for f in fields(Scored)
    )


def test_what_is_loaded_scores_as_what_was_made(registry: Registry, vectors: Vectors) -> None:
    """Created, uploaded, fetched, verified and built: the same scores to the last bit."""
    steps: list[str] = []
    made = vectors.create(registry, told=steps.append)
    assert tuple(steps) == STEPS
    loaded = load(registry, "v", 1, release_keys=(vectors.key.public,), spec=vectors.spec, now=NOW,
                  expected_digest=made.digest)  # fmt: skip
    assert loaded.manifest == made.manifest
    assert same(made.checkpoint.suite.score(vectors.fresh), loaded.suite.score(vectors.fresh))
    first, second = (
        one.screens.screen(vectors.fresh, np.zeros(len(vectors.fresh), np.int64))
        for one in (made.checkpoint, loaded)
    )
    assert first.score.tobytes() == second.score.tobytes()
    assert loaded.check_golden() == made.checkpoint.check_golden()
    assert loaded.check_golden().whole


def test_the_same_data_give_the_same_files(registry: Registry, vectors: Vectors) -> None:
    """Nothing is drawn but from the seed: all but the signature is bit-identical."""
    for version in (1, 2):
        vectors.create(registry, version=version)
    first, second = (registry.fetch("v", version) for version in (1, 2))
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"manifest.json", "model.sig"}
    other = vectors.create(registry, seed=1)
    assert (
        registry.fetch("v", other.version)["detectors.safetensors"]
        != first["detectors.safetensors"]
    )


def test_the_manifest_says_what_was_given(registry: Registry, vectors: Vectors) -> None:
    """Parent, provenance, expiry, metrics and classes as given, and the sizes of its files."""
    own = Parent(version=1, digest="1" * 64)
    learned = gather([batch(UUID(int=1), 0, 5, (3,), vectors.x[:1], vectors.y[:1])])
    metrics = Metrics(n=7, clean_accuracy=0.5)
    made = vectors.create(
        registry, version=4, parent=own, provenance=learned, reference_provenance=learned,
        metrics=metrics, expires=NOW + timedelta(days=1),
        spec=ModelTable.model_validate(VECTOR_SPEC | {"classes": ["bad", "good"]}),
    )  # fmt: skip
    manifest = made.manifest
    assert (made.version, manifest.version, manifest.parent) == (4, 4, own)
    assert (manifest.learned, manifest.rows, manifest.rows_root) == (
        learned.learned, 1, learned.root,
    )  # fmt: skip
    assert manifest.reference_learned == learned.learned
    assert (manifest.metrics, manifest.classes) == (metrics, ("bad", "good"))
    assert manifest.expires == NOW + timedelta(days=1)
    files = registry.sizes("v", 4)
    del files["model.sig"], files["manifest.json"]
    assert manifest.sizes == files
    assert vectors.create(registry).version == 5


def test_weights_come_as_tensors_bytes_or_a_file(
    registry: Registry, vectors: Vectors, tmp_path: Path
) -> None:
    """All three give the same model."""
    save_file(dict(vectors.weights), tmp_path / "w")
    given = (vectors.weights, save(dict(vectors.weights)), tmp_path / "w")
    made = [vectors.create(registry, weights=one).checkpoint.suite for one in given]
    scores = {suite.score(vectors.fresh).score.tobytes() for suite in made}
    assert len(scores) == 1


def test_figures_are_measured_on_held_out_data(registry: Registry, vectors: Vectors) -> None:
    """Accuracy is of inputs that no detector was fitted on; an attack lowers it."""
    rows = np.arange(len(vectors.x))
    splits = Splits(rows[:90], rows[90:150], rows[150:270], rows[270:])
    made = vectors.create(registry, splits=splits)
    network, metrics = made.checkpoint.network, made.manifest.metrics
    right = network.forward(vectors.x[150:]).prediction == vectors.y[150:]
    assert (metrics.n, metrics.clean_accuracy) == (150, pytest.approx(right.mean()))
    assert metrics.robust_accuracy is not None
    assert metrics.robust_accuracy < metrics.clean_accuracy
    assert made.manifest.calibration.n == made.manifest.drift.n == 120
    assert sum(made.manifest.drift.class_rates) == pytest.approx(1)
    quantiles = [quantile for _, quantile in made.manifest.drift.confidence]
    assert quantiles == sorted(quantiles)
    confidence = made.checkpoint.suite.score(vectors.x[150:270]).confidence
    for level, quantile in made.manifest.drift.confidence:
        assert (confidence < quantile).mean() <= level


def _nan(weights: Any) -> Any:
    # A variance that is negative passes for finite weights, and gives NaN for every input.
    return dict(weights) | {"0.running_var": weights["0.running_var"] * 0 - 1}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"weights": Path("/nowhere/w")}, ConfigError, "weights /nowhere/w cannot be read"),
        ({"weights": b"\x80\x04K\x01."}, Unsafe, "weights.safetensors looks like a pickle"),
        ({"weights": _nan}, ConfigError, r"NaN or infinity for 300 of 300 .* \[0, 1\]"),
        ({"spec": {"classes": ["a", "b", "c"]}}, ConfigError, "3 names, and the model gives 2"),
        ({"spec": {"detectors": ["feature_squeezing"]}}, ConfigError, "needs images"),
        ({"version": 1}, ConfigError, "the next free one is 2"),
        ({"model": "../m"}, ConfigError, "model name"),
    ],
    ids=["no file", "pickle", "nan", "classes", "needs images", "taken", "name"],
)
def test_a_mistake_makes_no_checkpoint(
    registry: Registry, vectors: Vectors, changes: dict[str, Any], error: type[Exception],
    words: str,
) -> None:  # fmt: skip
    """Each has its own words, and the registry stays as it was."""
    if "version" in changes:
        registry.upload("v", 1, {"model.sig": b""})
    before = registry.list("v")
    if "spec" in changes:
        changes = {"spec": ModelTable.model_validate(VECTOR_SPEC | changes["spec"])}
    if callable(changes.get("weights")):
        changes = {"weights": changes["weights"](vectors.weights)}
    with pytest.raises(error, match=words):
        vectors.create(registry, **changes)
    assert registry.list("v") == before


def test_a_network_that_draws_at_random_is_refused(registry: Registry, vectors: Vectors) -> None:
    """What does not do twice the same cannot be verified by doing it."""
    name = "tests.own_model.acme.networks:restless"
    spec = ModelTable.model_validate(VECTOR_SPEC | {"architecture": name})
    with pytest.raises(Unsafe, match="draw anything at random"):
        vectors.create(registry, spec=spec)
    assert registry.list("v") == ()
