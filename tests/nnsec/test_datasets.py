from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnsec.datasets import load
from nnsec.errors import ConfigError


def test_digits_are_on_their_grid() -> None:
    """All 1,797 bundled images, in the range that their input states."""
    data = load("digits")
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == np.uint8
    assert (int(data.x.min()), int(data.x.max())) == data.input.range
    assert sorted(set(data.y.tolist())) == list(range(10))


def test_mnist_comes_from_a_folder(tmp_path: Path) -> None:
    """Training and test images are one array, with a channel axis."""
    x, y = np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    data = load("mnist", tmp_path)
    assert data.x.shape == (4, 1, 28, 28)
    assert data.y.tolist() == [0, 1, 2, 0]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """Unknown names, missing files and wrong shapes are ConfigErrors."""
    np.savez(tmp_path / "mnist.npz", **{n: np.zeros((2, 2)) for n in
             ("x_train", "y_train", "x_test", "y_test")})  # fmt: skip
    for name, folder, word in (
        ("cifar", None, "unknown data set"),
        ("mnist", None, "needs the folder"),
        ("mnist", tmp_path / "none", "not MNIST"),
        ("mnist", tmp_path, "uint8"),
    ):
        with pytest.raises(ConfigError, match=word):
            load(name, folder)
