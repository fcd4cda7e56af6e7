"""Reference data: the user's clean inputs, checked so that every mistake is named."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import ConfigError
from nnsec.settings import Input
from nnsec.splits import Splits

CALIBRATED = 0.4
"""Share of the reference data that calibrates, unless splits are given."""
SMALLEST = 100
DISTINCT = 0.75
"""Share of the inputs that must differ from each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Clean inputs and their classes.

    Parameters
    ----------
    x:
        (n, *shape) in the wire dtype.
    y:
        (n,) int64.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]

    def digest(self) -> str:
        """SHA-256 over type, shape and bytes of x and y, in hex."""
        state = hashlib.sha256()
        for part in (self.x, self.y):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).data)
        return state.hexdigest()


def read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read ``x`` and ``y`` from an npz file; never pickle.

    Raises
    ------
    ConfigError
        If it is none, or lacks one of the two.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"]
    except KeyError as error:
        raise ConfigError(
            f"{path}: {error}; it needs x and y: numpy.savez(file, x=…, y=…)"
        ) from error
    except (
        OSError, ValueError, EOFError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        raise ConfigError(
            f"{path} is no npz file of plain arrays: {error}; write it with numpy.savez"
        ) from error


def check(
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    input: Input,  # noqa: A002 - its name in the configuration
    classes: int,
    alpha: float,
    splits: Splits | None = None,
    counted: bool = True,
) -> Reference:
    """Check data against the model's configuration.

    Parameters
    ----------
    x, y:
        What the user gave.
    classes:
        How many classes the model gives.
    alpha:
        Inputs with a p-value of at most this are flagged; it decides how many are needed.
    splits:
        Which rows serve for what; None to draw them.
    counted:
        Whether so many are needed, and so different, that they can calibrate.

    Raises
    ------
    ConfigError
        Saying what is wrong and what to change.
    """
    _check_inputs(x, input)
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (len(x),):
        raise ConfigError(
            f"reference y is {y.dtype} of shape {list(y.shape)}; one int64 class for each of the "
            f"{len(x)} inputs is needed"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ConfigError(
            f"reference y goes from {y.min()} to {y.max()}, and the model has {classes} classes, "
            f"0 to {classes - 1}; correct y or the architecture"
        )
    if counted:
        _check_count(len(x), alpha, splits)
        _check_distinct(x)
    return Reference(np.ascontiguousarray(x), np.ascontiguousarray(y, np.int64))


def _check_inputs(x: NDArray[Any], spec: Input) -> None:
    low, high = spec.range
    if not low < high:
        raise ConfigError(f"input.range is {[low, high]}; the first must be the smaller one")
    if x.dtype != np.dtype(spec.dtype):
        raise ConfigError(
            f"reference x is {x.dtype}, and input.dtype says {spec.dtype}; convert the data with "
            f"x.astype('{spec.dtype}'), or change input.dtype"
        )
    if x.shape[1:] != tuple(spec.shape):
        raise ConfigError(
            f"reference x has shape {list(x.shape)}, and input.shape = {list(spec.shape)} asks for "
            f"[n, {', '.join(map(str, spec.shape))}]; reshape the data, or change input.shape"
        )
    if not x.size:
        return
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ConfigError("reference x holds NaN or infinity; leave those inputs out")
    if x.min() < low or x.max() > high:
        raise ConfigError(
            f"reference x goes from {x.min()} to {x.max()}, outside input.range = {[low, high]}; "
            "scale the data as producers will send it, or change input.range"
        )


def minimum(alpha: float) -> int:
    """Fewest reference inputs with which anything can be flagged at this α.

    A p-value is at least 1 / (n + 1), so that n ≥ 1/α − 1 inputs must calibrate.
    """
    return max(SMALLEST, math.ceil((1 / alpha - 1) / CALIBRATED) + 5)


def _check_count(n: int, alpha: float, splits: Splits | None) -> None:
    needed = math.ceil(round(1 / alpha - 1, 6))
    if splits is not None and len(splits.calibrate) < needed:
        raise ConfigError(
            f"{len(splits.calibrate)} inputs calibrate, and α = {alpha:g} needs {needed}; "
            "give more reference data, or raise alpha"
        )
    if splits is None and n < minimum(alpha):
        raise ConfigError(
            f"{n} reference inputs; at least {minimum(alpha)} are needed at alpha = {alpha:g}; "
            "give more, or raise [models.NAME] alpha"
        )


def _check_distinct(x: NDArray[Any]) -> None:
    """A repeated input is in several parts: then detectors are calibrated on what they know."""
    distinct = len({hashlib.sha256(row.tobytes()).digest() for row in x})
    if distinct < DISTINCT * len(x):
        raise ConfigError(
            f"only {distinct} of {len(x)} reference inputs differ from each other; give each once"
        )
