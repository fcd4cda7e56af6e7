"""What the screens see of training samples: inputs, labels, features and compact descriptions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnsec.poisoning.rowwise import product

SIGNATURE = 24
"""Numbers in a signature: enough that distances between signatures follow those of the inputs."""
LEVELS = 4
"""Grey levels of a pixel in a code."""
MAX_PLACES = 256
MAX_EDGE = 32
"""Larger images are averaged down to at most this edge before they are cut into places."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the input a code was read, in the input's own coordinates, ends exclusive."""

    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """How inputs of one shape and range are described; nothing in it is fitted.

    Being the same for every checkpoint of a model, descriptions that a window keeps stay
    comparable when the checkpoint is swapped.

    Parameters
    ----------
    shape:
        Of one input, without the batch axis; with two axes or more the last two are an image's
        rows and columns.
    low, high:
        Range of the values.

    Examples
    --------
    >>> grid = Geometry((1, 8, 8), 0, 16)
    >>> grid.places, grid.place(0)
    (49, Place(rows=(0, 2), columns=(0, 2)))
    """

    shape: tuple[int, ...]
    low: float
    high: float

    @property
    def image(self) -> bool:
        """Whether the inputs are images."""
        return len(self.shape) > 1 and min(self.shape[-2:]) > 1

    @property
    def size(self) -> int:
        """Values in one input."""
        return int(np.prod(self.shape))

    @property
    def _pool(self) -> tuple[int, int]:
        """Rows and columns averaged into one.

        As many of either; of an axis with less than two left then, as many as its own edge needs.
        """
        pool = -(-max(self.shape[-2:]) // MAX_EDGE)
        down, across = (pool if edge > pool else -(-edge // MAX_EDGE) for edge in self.shape[-2:])
        return down, across

    @property
    def _tiles(self) -> tuple[int, int, int]:
        """Rows and columns of 2×2 tiles, and the step between them."""
        rows, columns = (
            -(-edge // pool) for edge, pool in zip(self.shape[-2:], self._pool, strict=True)
        )
        step = 1 if (rows - 1) * (columns - 1) <= MAX_PLACES else 2
        return (rows - 2) // step + 1, (columns - 2) // step + 1, step

    @property
    def places(self) -> int:
        """Codes per input."""
        if not self.image:
            return min(self.size, MAX_PLACES)
        rows, columns, _ = self._tiles
        return rows * columns

    def place(self, index: int) -> Place:
        """Where the code with this index is read; a vector is one row."""
        if not self.image:
            return Place((0, 1), (index, index + 1))
        _, columns, step = self._tiles
        (down, across), (height, width) = self._pool, self.shape[-2:]
        row, column = divmod(index, columns)
        row, column = step * down * row, step * across * column
        return Place((row, min(row + 2 * down, height)), (column, min(column + 2 * across, width)))

    def scale(self, x: ArrayLike) -> NDArray[np.float32]:
        """(N, D) float32 in [0, 1]: the inputs of either dtype, flattened."""
        flat = np.asarray(x, np.float32).reshape(-1, self.size)
        span = self.high - self.low
        return np.asarray(np.clip((flat - np.float32(self.low)) / np.float32(span), 0, 1))

    def signatures(self, scaled: NDArray[np.float32]) -> NDArray[np.int8]:
        """(N, 24) int8: a fixed random projection, so that near inputs have near signatures.

        Source: Achlioptas, "Database-friendly random projections" (2003).
        """
        signs = _signs(self.size) / np.float32(np.sqrt(SIGNATURE))
        signs *= np.float32(127 / (2 * np.sqrt(self.size / SIGNATURE)))
        projected = product(scaled - np.float32(0.5), signs)
        return np.asarray(np.clip(np.rint(projected), -127, 127), np.int8)

    def reduce(self, scaled: NDArray[np.float32], width: int) -> NDArray[np.float32]:
        """(N, at most about width) averages: over blocks of pixels, or over runs of values."""
        if not self.image:
            return _average(scaled[:, None], 1, -(-self.size // width)).reshape(len(scaled), -1)
        height, width_ = self.shape[-2:]
        grey = scaled.reshape(len(scaled), -1, height, width_).mean(1)
        pool = int(np.ceil(np.sqrt(height * width_ / width)))
        return _average(grey, pool, pool).reshape(len(scaled), -1)

    def codes(self, scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(N, places) uint8: coarse content of each place.

        Of an image a place is 2×2 pixels (of a large one: of averages) in 4 grey levels each; of
        a vector it is one value in 256 levels.
        """
        if not self.image:
            return np.minimum(scaled[:, : self.places] * 256, 255).astype(np.uint8)
        height, width = self.shape[-2:]
        grey = scaled.reshape(len(scaled), -1, height, width).mean(1)
        grey = _average(grey, *self._pool)
        levels = np.minimum(grey * LEVELS, LEVELS - 1).astype(np.uint8)
        rows, columns, step = self._tiles
        code = np.zeros((len(scaled), rows, columns), np.uint8)
        for row in (0, 1):
            for column in (0, 1):
                part = levels[:, row::step, column::step][:, :rows, :columns]
                code = code * np.uint8(LEVELS) + part
        return code.reshape(len(scaled), -1)


def _signs(size: int) -> NDArray[np.float32]:
    """(size, 24) of ±1, the same in every version and on every machine."""
    raw = hashlib.shake_128(b"nnsec signature").digest(size * SIGNATURE // 8)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)).astype(np.float32)
    return (2 * bits - 1).reshape(size, SIGNATURE)


def _average(images: NDArray[np.float32], down: int, across: int) -> NDArray[np.float32]:
    """(N, rows, columns) averaged over blocks of pixels; an edge left over is repeated."""
    if down == across == 1:
        return images
    pad = [(0, 0), (0, -images.shape[1] % down), (0, -images.shape[2] % across)]
    padded = np.pad(images, pad, mode="edge")
    n, rows, columns = padded.shape
    blocks = padded.reshape(n, rows // down, down, columns // across, across)
    return np.asarray(blocks.mean((2, 4), dtype=np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A batch of labelled inputs with all that the screens share.

    Parameters
    ----------
    x:
        (N, *shape) in the wire dtype.
    scaled:
        (N, D) float32 in [0, 1].
    labels:
        (N,) int64 in [0, classes).
    features:
        (N, F) float32: what the network computes before its last layer.
    fingerprints:
        (N,) uint64: equal for equal inputs, whatever their labels.
    signatures:
        (N, 24) int8.
    codes:
        (N, places) uint8.
    """

    x: NDArray[np.generic]
    scaled: NDArray[np.float32]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    fingerprints: NDArray[np.uint64]
    signatures: NDArray[np.int8]
    codes: NDArray[np.uint8]

    @classmethod
    def describe(
        cls, geometry: Geometry, x: NDArray[np.generic], labels: ArrayLike, features: ArrayLike
    ) -> Samples:
        """Compute the descriptions of a batch."""
        scaled = geometry.scale(x)
        return cls(
            x,
            scaled,
            np.asarray(labels, np.int64),
            np.asarray(features, np.float32).reshape(len(scaled), -1),
            fingerprints(x),
            geometry.signatures(scaled),
            geometry.codes(scaled),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> Samples:
        """Some of the samples, in the order given."""
        return Samples(
            self.x[rows], self.scaled[rows], self.labels[rows], self.features[rows],
            self.fingerprints[rows], self.signatures[rows], self.codes[rows],
        )  # fmt: skip


def fingerprints(x: NDArray[np.generic]) -> NDArray[np.uint64]:
    """(N,) uint64: BLAKE2b over the bytes of each input."""
    rows = np.ascontiguousarray(x)
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def labelled(fingerprints: NDArray[np.uint64], labels: ArrayLike) -> NDArray[np.uint64]:
    """(N,) uint64: BLAKE2b over each input's fingerprint and its label.

    Equal where input and label are: an input under another label is another claim, and no repeat.
    """
    pairs = np.stack([fingerprints, np.asarray(labels).astype(np.uint64)], axis=1).astype("<u8")
    digests = (hashlib.blake2b(pair.tobytes(), digest_size=8).digest() for pair in pairs)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
