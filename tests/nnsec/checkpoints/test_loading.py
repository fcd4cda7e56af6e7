"""Loading: only for the configuration that it was made for, and only with its own weights."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Created, load, tensors
from nnsec.checkpoints.creation import publish
from nnsec.checkpoints.loading import with_weights
from nnsec.checkpoints.manifest import DETECTORS, GOLDEN, SCREENS, WEIGHTS
from nnsec.errors import (
    BadSignature,
    ConfigError,
    DigestMismatch,
    Expired,
    RollbackRefused,
    Unsafe,
)
from nnsec.settings import ModelTable
from nnsec.trust import keys
from tests.nnsec.checkpoints.small_checkpoint import NOW, VECTOR_SPEC, Vectors


@pytest.fixture(scope="module")
def made(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Created:
    """Version 2 of the model ``v``."""
    folder = tmp_path_factory.mktemp("loading")
    return vectors.create(
        Registry(str(folder)), version=2, expires=NOW + timedelta(days=1)
    )  # fmt: skip


@pytest.fixture
def registry(made: Created) -> Registry:
    """Where it lies."""
    return Registry(str(Path(made.location).parents[1]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"floor": 3}, RollbackRefused, "older than version 3"),
        ({"now": NOW + timedelta(days=2)}, Expired, "v/2 expired"),
        ({"expected_digest": "0" * 64}, DigestMismatch, "0000000000000000… was expected"),
        ({"release_keys": (keys.generate().public,)}, BadSignature, "not among the 1 trusted"),
    ],
    ids=["floor", "expiry", "digest", "key"],
)
def test_what_does_not_verify_is_not_built(
    registry: Registry, vectors: Vectors, monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any], error: type[Exception], words: str,
) -> None:  # fmt: skip
    """The refusal comes before any network is made."""
    monkeypatch.setattr(
        "nnsec.models.build", lambda *names: pytest.fail("a network was made")
    )  # fmt: skip
    given = {"release_keys": (vectors.key.public,), "spec": vectors.spec, "now": NOW}
    with pytest.raises(error, match=words):
        load(registry, "v", 2, **(given | options))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "nnsec.models:small_cnn"}, "for architecture"),
        ({"input": VECTOR_SPEC["input"] | {"range": [0, 1]}}, r"for input\.range = \(-8"),
        ({"input": VECTOR_SPEC["input"] | {"shape": [5, 6]}}, r"for input\.shape = \(30,\)"),
        ({"input": VECTOR_SPEC["input"] | {"dtype": "uint8"}}, r"for input\.dtype = 'float32'"),
        ({"features": "1"}, "for features = 'auto'"),
        ({"classes": ["a", "b"]}, "for classes"),
    ],
    ids=["architecture", "range", "shape", "dtype", "features", "classes"],
)
def test_another_configuration_is_refused(
    registry: Registry, vectors: Vectors, changes: dict[str, Any], words: str
) -> None:
    """The error names the key, both values, and what can be changed."""
    spec = ModelTable.model_validate(VECTOR_SPEC | changes)
    with pytest.raises(ConfigError, match=words) as caught:
        load(registry, "v", 2, release_keys=(vectors.key.public,), spec=spec, now=NOW)
    assert "[models.v]" in str(caught.value)


def _without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name not in names}


def test_weights_of_another_network_are_named(vectors: Vectors) -> None:
    """What is missing, what is too much and what has another shape, three names of each."""
    weights = dict(vectors.weights)
    for given, words in (
        (_without(weights, "1.bias"), r"the file lacks 1\.bias\. Name"),
        (_without(weights, "0.weight", "0.bias", "1.weight", "1.bias"), "and 1 more"),
        (weights | {"head.weight": torch.zeros(1)}, r"has besides head\.weight"),
        (weights | {"1.bias": torch.zeros(7)}, r"other shapes for 1\.bias \(\[7\], not \[32\]\)"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            with_weights(vectors.spec, given)
        assert "[models.NAME] architecture" in str(caught.value)


def _changed(content: bytes, **arrays: Any) -> bytes:
    return tensors.dump_arrays(tensors.load_arrays("f", content) | arrays)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (DETECTORS, {"columns": np.zeros((3, 2))}, "do not fit"),
        (DETECTORS, {"detectors": np.frombuffer(b"\xff", np.uint8)}, "incomplete"),
        (SCREENS, {"columns": np.zeros((3, 2))}, "do not fit"),
        (GOLDEN, {"y": np.zeros(3, np.int64)}, "different lengths"),
        (GOLDEN, {"x": np.zeros((64, 31), np.float32)}, r"inputs of shape \[31\].* takes \[30\]"),
        (
            DETECTORS,
            {"detector.knn.references": np.zeros((1, 9, 32), np.float32),
             "detector.knn.labels": np.zeros(9, np.int64)},
            "'knn' does not fit the model: scores of shape",
        ),
        (GOLDEN, {"score": np.zeros(64, np.float32) - 1}, "does not do after reading"),
    ],
    ids=["columns", "names", "screens", "lengths", "inputs", "axes", "answers"],
)  # fmt: skip
def test_signed_nonsense_is_refused(
    made: Created, vectors: Vectors, tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    """A signature does not make fitted state of any arrays."""
    files = Registry(str(Path(made.location).parents[1])).fetch("v", 2)
    del files["model.sig"], files["manifest.json"]
    files[name] = _changed(files[name], **changes)
    empty = Registry(str(tmp_path / "r"))
    with pytest.raises(Unsafe, match=words):
        publish(empty, made.manifest, files, spec=vectors.spec, key=vectors.key, now=NOW)
    assert empty.list("v") == ()


def test_the_weights_that_were_signed_are_those_that_run(made: Created, vectors: Vectors) -> None:
    """Every tensor is as it was given; the file holds no more."""
    stored = Registry(str(Path(made.location).parents[1])).fetch("v", 2)[WEIGHTS]
    found = tensors.load_tensors(WEIGHTS, stored)
    state = made.checkpoint.network.module.state_dict()
    assert found.keys() == state.keys() == vectors.weights.keys()
    assert all(torch.equal(found[name], vectors.weights[name]) for name in found)
    assert all(torch.equal(state[name], vectors.weights[name]) for name in found)
