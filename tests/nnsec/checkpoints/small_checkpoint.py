"""What these tests share: a checkpoint of nonsense, and what a real small one is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Created, create
from nnsec.checkpoints.manifest import (
    CalibrationFigures,
    DriftReference,
    InputSpec,
    Metrics,
)
from nnsec.checkpoints.provenance import EMPTY_ROOT
from nnsec.settings import ModelTable
from nnsec.trust.keys import PrivateKey

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MODEL, VERSION = "m", 3
VALUES: dict[str, Any] = {
    "model": MODEL, "version": VERSION, "architecture": "nnsec.models:small_cnn",
    "input": InputSpec(shape=(1, 8, 8), dtype="uint8", range=(0.0, 16.0)), "classes": ("a", "b"),
    "rows_root": EMPTY_ROOT, "reference_rows": 100, "reference_digest": "0" * 64,
    "detectors": ("energy",),
    "calibration": CalibrationFigures(
        n=40, alpha=0.1, smallest_p=1 / 41, false_positive_rate=(0.02, 0.2),
        smallest_attack_share=0.3, thresholds=(1.0,), rates=(0.1,),
    ),
    "metrics": Metrics(n=40, clean_accuracy=0.9),
    "drift": DriftReference(n=40, class_rates=(0.5, 0.5), confidence=((0.1, 0.6),)),
    "seed": 0, "created": NOW,
}  # fmt: skip

Files = dict[str, bytes]
MakeFiles = Callable[..., Files]


@dataclass(frozen=True, slots=True)
class Vectors:
    """A small network on vectors, trained in a tenth of a second, and clean data for it."""

    spec: ModelTable
    weights: Mapping[str, Tensor]
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    fresh: NDArray[np.float32]
    key: PrivateKey

    def create(self, registry: Registry, **changes: Any) -> Created:
        """Make a checkpoint of the model ``v``."""
        given = {"model": "v", "spec": self.spec, "weights": self.weights, "x": self.x,
                 "y": self.y, "key": self.key, "now": NOW}  # fmt: skip
        return create(registry, **(given | changes))


VECTOR_SPEC = {
    "architecture": "tests.own_model.acme.networks:two_layers", "device": "cpu", "alpha": 0.02,
    "input": {"shape": [30], "dtype": "float32", "range": [-8, 8]},
}  # fmt: skip
