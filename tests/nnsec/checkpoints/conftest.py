"""A small signed checkpoint as bytes, made in a millisecond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nnsec.adapters.registry import SIGNATURE
from nnsec.checkpoints import signing, tensors
from nnsec.checkpoints.manifest import DETECTORS, GOLDEN, MANIFEST, SCREENS, WEIGHTS, Manifest
from nnsec.settings import ModelTable
from nnsec.trust import keys
from nnsec.trust.keys import PrivateKey
from tests.nnsec.checkpoints.small_checkpoint import VALUES, VECTOR_SPEC, Files, MakeFiles, Vectors
from tests.own_model.acme import data, networks


@pytest.fixture(scope="session")
def key() -> PrivateKey:
    """A release key."""
    return keys.generate()


@pytest.fixture
def manifest() -> Manifest:
    """A manifest of version 3 of the model ``m``."""
    return Manifest(**VALUES)


@pytest.fixture
def files(key: PrivateKey) -> MakeFiles:
    """Make the files of a checkpoint, with other contents or other fields in the manifest."""

    def make(replace: Mapping[str, bytes | None] | None = None, **fields: Any) -> Files:
        arrays = {"a": np.arange(6, dtype=np.float32), "b": np.arange(3)}
        whole: dict[str, bytes | None] = {
            name: tensors.dump_arrays(arrays) for name in (WEIGHTS, DETECTORS, SCREENS, GOLDEN)
        }
        whole[MANIFEST] = Manifest(**(VALUES | fields)).encode()
        whole |= replace or {}
        kept = {name: content for name, content in whole.items() if content is not None}
        kept[SIGNATURE] = signing.sign("m/3", kept, key)
        return kept

    return make


@pytest.fixture(scope="session")
def vectors(key: PrivateKey) -> Vectors:
    """What a checkpoint of the model ``v`` is made of."""
    x, y = data.cancer(0)
    scaled = (x + data.REACH) / (2 * data.REACH)
    module = data.train(networks.two_layers(), scaled[:200], y[:200], epochs=20, seed=0)
    spec = ModelTable.model_validate(VECTOR_SPEC)
    return Vectors(spec, module.state_dict(), x[200:500], y[200:500], x[500:], key)
