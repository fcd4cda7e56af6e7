"""What is in the small checkpoint that these tests share; it makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nnsec.checkpoints.manifest import (
    CalibrationFigures,
    DriftReference,
    InputSpec,
    Metrics,
)
from nnsec.checkpoints.provenance import EMPTY_ROOT

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
