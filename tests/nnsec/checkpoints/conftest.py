"""A small signed checkpoint as bytes, made in a millisecond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from small_checkpoint import VALUES, Files, MakeFiles

from nnsec.adapters.registry import SIGNATURE
from nnsec.checkpoints import signing, tensors
from nnsec.checkpoints.manifest import DETECTORS, GOLDEN, MANIFEST, SCREENS, WEIGHTS, Manifest
from nnsec.trust import keys
from nnsec.trust.keys import PrivateKey


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
