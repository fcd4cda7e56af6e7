"""Data to try the monitor on: scikit-learn's bundled digits, and MNIST from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import ConfigError
from nnsec.settings import Input


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled inputs in the wire type.

    Parameters
    ----------
    x:
        (n, *shape) uint8.
    y:
        (n,) int64.
    input:
        What a model of it takes.
    """

    name: str
    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    input: Input


def load(name: str, folder: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name:
        ``digits`` (1,797 images of 1 by 8 by 8, 0 to 16) or ``mnist`` (70,000 of 1 by 28 by 28).
    folder:
        Where ``mnist.npz`` is: ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    Raises
    ------
    ConfigError
        For an unknown name, or where the file is missing or is not that.
    """
    if name == "digits":
        from sklearn.datasets import load_digits  # half a second, for digits only

        digits = load_digits()
        x = digits.images.astype(np.uint8)[:, None]
        shape = Input(shape=(1, 8, 8), dtype="uint8", range=(0, 16))
        return Dataset(name, x, digits.target.astype(np.int64), shape)
    if name == "mnist":
        return _mnist(folder)
    raise ConfigError(f"unknown data set {name!r}; there are 'digits' and 'mnist'")


def _mnist(folder: str | Path | None) -> Dataset:
    if folder is None:
        raise ConfigError("mnist needs the folder of mnist.npz: --data FOLDER")
    path = Path(folder) / "mnist.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x = np.concatenate([arrays["x_train"], arrays["x_test"]])
            y = np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not MNIST as expected: {error}") from error
    if x.dtype != np.uint8 or x.shape[1:] != (28, 28) or len(x) != len(y):
        raise ConfigError(f"{path}: x is {x.dtype} {x.shape}, not uint8 (n, 28, 28)")
    shape = Input(shape=(1, 28, 28), dtype="uint8", range=(0, 255))
    return Dataset("mnist", x[:, None], y, shape)
