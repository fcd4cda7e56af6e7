"""Reference data: every mistake is named, with what to change."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec.checkpoints import reference
from nnsec.errors import ConfigError
from nnsec.settings import Input
from nnsec.splits import Splits

IMAGE = Input(shape=(1, 4, 4), dtype="uint8", range=(0, 16))
VECTOR = Input(shape=(3,), dtype="float32", range=(-1, 1))
N = 300
PICTURES = np.zeros((N, 1, 4, 4), np.uint8)
PICTURES[:, 0, 0, :3] = np.arange(N)[:, None] // (1, 17, 289) % 17
VECTORS = np.linspace(-1, 1, 3 * N, dtype=np.float32).reshape(N, 3)


def _images(**changes: Any) -> dict[str, Any]:
    given = {
        "x": PICTURES, "y": np.arange(N) % 2, "input": IMAGE,
        "classes": 2, "alpha": 0.01,
    }  # fmt: skip
    return given | changes


def test_good_data_pass_and_have_a_digest() -> None:
    """The digest covers values, labels, types and shapes."""
    found = reference.check(**_images(y=(np.arange(N) % 2).astype(np.int32)))
    assert found.y.dtype == np.int64
    others = [
        reference.check(**_images(y=1 - np.arange(N) % 2)),
        reference.check(**_images(x=PICTURES[::-1])),
        reference.check(
            **_images(x=PICTURES.reshape(N, 4, 1, 4),
                      input=Input(shape=(4, 1, 4), range=(0, 16)))
        ),
    ]  # fmt: skip
    assert len({one.digest() for one in (found, *others)}) == 4
    assert found.digest() == reference.check(**_images()).digest()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": (_images(x=np.zeros((N, 1, 4, 4))), r"float64, and input\.dtype says uint8; .*astype"),
    "shape": (_images(x=np.zeros((N, 4, 4), np.uint8)), r"asks for \[n, 1, 4, 4\]; reshape"),
    "range": (_images(x=np.full((N, 1, 4, 4), 17, np.uint8)), r"17 to 17, outside input\.range"),
    "below": (_images(x=VECTORS - 2, input=VECTOR), r"-3\.0 to -1\.0, outside"),
    "nan": (_images(x=VECTORS * np.nan, input=VECTOR), "NaN or infinity; leave"),
    "empty range": (_images(input=Input(shape=(1, 4, 4), range=(5, 5))), "must be the smaller"),
    "float labels": (_images(y=np.zeros(N)), "reference y is float64"),
    "one label too few": (_images(y=np.zeros(N - 1, int)), r"one int64 class for each of the 300"),
    "columns": (_images(y=np.zeros((N, 1), int)), r"of shape \[300, 1\]"),
    "label too high": (_images(y=np.full(N, 2)), "from 2 to 2, and the model has 2 classes"),
    "label below": (_images(y=np.arange(N) % 2 - 1), "from -1 to 0"),
    "few": (_images(x=np.zeros((99, 1, 4, 4), np.uint8), y=np.zeros(99, int), alpha=0.1),
            "99 reference inputs; at least 100 .*raise"),
    "few for alpha": (_images(x=np.zeros((200, 1, 4, 4), np.uint8), y=np.zeros(200, int)),
                      r"200 reference inputs; at least 253 are needed at alpha = 0\.01"),
    "repeated": (_images(x=PICTURES[np.arange(N) % 200]), "only 200 of 300 .* differ from each"),
    "none": (_images(x=np.zeros((0, 1, 4, 4), np.uint8), y=np.zeros(0, int)), "0 reference"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_named_with_its_remedy(given: dict[str, Any], words: str) -> None:
    """Type, shape, range, labels and number: each has words of its own."""
    with pytest.raises(ConfigError, match=words):
        reference.check(**given)


def test_what_only_is_scored_need_be_neither_many_nor_different() -> None:
    """Type, shape and range count all the same."""
    few = PICTURES[[1, 1, 1]]
    assert len(reference.check(**_images(x=few, y=np.zeros(3, int), counted=False)).x) == 3
    with pytest.raises(ConfigError, match="outside"):
        reference.check(**_images(x=few + np.uint8(17), y=np.zeros(3, int), counted=False))


def test_given_splits_must_calibrate_enough() -> None:
    """Whoever splits the data is told how many must calibrate."""
    rows = np.arange(N)
    good = Splits(rows[:50], rows[50:100], rows[100:199], rows[199:])
    reference.check(**_images(splits=good))
    with pytest.raises(ConfigError, match=r"98 inputs calibrate, and α = 0\.01 needs 99"):
        reference.check(**_images(splits=Splits(rows[:50], rows[50:100], rows[100:198], rows[:0])))


def test_the_least_number_is_enough_to_flag() -> None:
    """With the minimum, the smallest p-value reaches α, which is what flags."""
    for alpha in (0.1, 0.01, 0.003):
        n = reference.minimum(alpha)
        parts = Splits.stratified(np.arange(n) % 3, seed=0)
        assert 1 / (len(parts.calibrate) + 1) <= alpha


def test_a_file_is_read(tmp_path: Path) -> None:
    """``numpy.savez`` writes it."""
    np.savez(tmp_path / "r.npz", x=np.eye(2), y=np.arange(2))
    x, y = reference.read(tmp_path / "r.npz")
    assert (x.tolist(), y.tolist()) == (np.eye(2).tolist(), [0, 1])


def _objects(path: Path) -> None:
    np.savez(path, x=np.array([{}]), y=np.arange(1), allow_pickle=True)


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.eye(2))


def _damaged(path: Path, change: Callable[[bytearray, int], object]) -> None:
    """A file of numpy's own with some bytes changed; the number is where its list begins."""
    content = io.BytesIO()
    np.savez_compressed(content, x=np.arange(60).reshape(3, 20), y=np.arange(3))
    raw = bytearray(content.getvalue())
    change(raw, raw.index(b"PK\x01\x02"))
    path.write_bytes(raw)


def _garbled(path: Path) -> None:
    name = len("x.npy")
    _damaged(path, lambda raw, _: raw.__setitem__(slice(50 + name, 60 + name), b"\xff" * 10))


def _compressed_anew(path: Path) -> None:
    _damaged(path, lambda raw, at: raw.__setitem__(at + 10, 99))


def _enciphered(path: Path) -> None:
    _damaged(path, lambda raw, at: (raw.__setitem__(6, 1), raw.__setitem__(at + 8, 1)))


def _vast(path: Path) -> None:
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, head.getvalue())


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no npz file"),
        (lambda path: path.write_bytes(b""), "no npz file"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01."), "no npz file"),
        (lambda path: path.write_bytes(b"PK\x03\x04broken"), "no npz file"),
        (lambda path: np.savez(path, x=np.eye(2)), "it needs x and y"),
        (_objects, "no npz file of plain arrays"),
        (lambda path: path.mkdir(), "no npz file"),
        (_array, "no npz file"),
        (_garbled, "no npz file"),
        (_compressed_anew, "no npz file"),
        (_enciphered, "no npz file"),
        (_vast, "no npz file"),
    ],
    ids=[
        "missing",
        "empty",
        "pickle",
        "broken zip",
        "no y",
        "objects",
        "folder",
        "npy",
        "garbled",
        "compressed anew",
        "enciphered",
        "vast",
    ],
)
def test_what_is_no_reference_file_is_refused(tmp_path: Path, write: Any, words: str) -> None:
    """Pickle is never read, and the file is named."""
    path = tmp_path / "r.npz"
    write(path)
    with pytest.raises(ConfigError, match=words) as caught:
        reference.read(path)
    assert "r.npz" in str(caught.value)
