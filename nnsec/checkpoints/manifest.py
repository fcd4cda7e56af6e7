"""``manifest.json``: what a checkpoint is, what it learned from, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, ValidationError

from nnsec.adapters.registry import SIGNATURE
from nnsec.errors import SchemaError, Unsafe
from schemas import strict_json
from schemas.base import Model, Time, to_schema_error

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
DETECTORS = "detectors.safetensors"
SCREENS = "screens.safetensors"
GOLDEN = "golden.safetensors"
MIB = 1024 * 1024
LIMITS: Mapping[str, int] = {
    WEIGHTS: 8 * 1024 * MIB,
    DETECTORS: 1024 * MIB,
    SCREENS: 1024 * MIB,
    GOLDEN: 64 * MIB,
    MANIFEST: 16 * MIB,
    SIGNATURE: MIB,
}
"""Every file of a checkpoint, and the most bytes of it that are read."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Parent(Model):
    """The checkpoint that this one was trained on from."""

    version: Annotated[int, Field(ge=1)]
    digest: Sha256


class InputSpec(Model):
    """One input, as in ``[models.NAME] input``."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    range: tuple[float, float]


class Learned(Model):
    """Positions of one partition that the checkpoint learned from.

    Parameters
    ----------
    ranges:
        First and last offset of each run, inclusive, ascending.
    exclusions:
        (offset, row) inside the ranges that it did not learn from.
    """

    log: UUID
    topic: str
    partition: Count
    ranges: tuple[tuple[Count, Count], ...]
    exclusions: tuple[tuple[Count, Count], ...] = ()


class Metrics(Model):
    """Figures on held-out reference data.

    Parameters
    ----------
    n:
        Inputs that the accuracies are of.
    clean_accuracy:
        On the inputs as they are.
    robust_accuracy:
        Under PGD (L∞, ``epsilon`` of the range, ``steps``); null if it was not measured.
    """

    n: Count
    clean_accuracy: Share
    robust_accuracy: Share | None = None
    epsilon: float = 0.0
    steps: Count = 0


class DriftReference(Model):
    """What clean calibration inputs look like to the model, for the drift detectors.

    Parameters
    ----------
    n:
        Calibration inputs.
    class_rates:
        Share of each class among the predictions.
    confidence:
        (level, quantile): at most that share of clean confidences is strictly under the quantile.
    """

    n: Count
    class_rates: tuple[Share, ...]
    confidence: tuple[tuple[Share, Share], ...]


class CalibrationFigures(Model):
    """What the calibration can promise; the scores themselves are in ``detectors.safetensors``."""

    n: Count
    alpha: float
    smallest_p: float
    false_positive_rate: tuple[float, float]
    smallest_attack_share: float
    thresholds: tuple[float, ...]
    rates: tuple[float, ...]


class Manifest(Model):
    """All that is said about a checkpoint; signed with the files beside it.

    Parameters
    ----------
    learned:
        Positions of ``training.samples`` that the weights learned from; empty for none.
    rows:
        How many rows these are.
    rows_root:
        Merkle root over them (see `provenance`).
    reference_digest:
        SHA-256 of the clean data that detectors were fitted and calibrated on.
    reference_learned:
        Positions of ``training.samples`` among that data; empty where all of it is the user's own.
    sizes:
        Bytes by name of the files beside it, so that a larger one is refused before it is read;
        empty in what was made before there were such.
    """

    format: Literal[1] = 1
    model: str
    version: Annotated[int, Field(ge=1)]
    parent: Parent | None = None
    architecture: str
    input: InputSpec
    features: str = "auto"
    classes: tuple[str, ...]
    learned: tuple[Learned, ...] = ()
    rows: Count = 0
    rows_root: Sha256
    reference_rows: Count
    reference_digest: Sha256
    reference_learned: tuple[Learned, ...] = ()
    detectors: tuple[str, ...]
    calibration: CalibrationFigures
    metrics: Metrics
    drift: DriftReference
    seed: int
    created: Time
    expires: Time | None = None
    sizes: Mapping[str, Count] = {}

    def encode(self) -> bytes:
        """UTF-8 JSON, indented for people."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Read the bytes of a manifest whose signature was checked.

        Raises
        ------
        Unsafe
            Naming the field, if it is none of this format.
        """
        try:
            found = strict_json.loads(content, limit=LIMITS[MANIFEST])
            if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
                raise Unsafe(
                    f"{MANIFEST} has format {found['format']!r}; this version reads {FORMAT}"
                )
            return cls.model_validate_json(content)
        except ValidationError as error:
            schema = to_schema_error(error)
            raise Unsafe(f"{MANIFEST}: {schema.field}: {schema}") from error
        except SchemaError as error:
            raise Unsafe(f"{MANIFEST}: {error}") from error
