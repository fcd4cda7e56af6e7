"""How inputs are described: where codes are read, and what signatures keep."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from nnsec.poisoning.rowwise import CHUNK, chunked, product
from nnsec.poisoning.samples import MAX_PLACES, SIGNATURE, Geometry, Samples, fingerprints, labelled
from nnsec.poisoning.statistics import log10_tail

SHAPES = [(1, 8, 8), (8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 40), (1, 100, 60), (30,), (5, 1, 7)]
NARROW = [(1, 12, 1000), (1000, 12), (1, 2, 40), (3, 5, 2), (40, 2), (2, 3, 9000)]


@pytest.mark.parametrize("shape", [*SHAPES, *NARROW, (2000,)])
def test_codes_are_read_where_their_place_says(shape: tuple[int, ...]) -> None:
    """A change inside a place changes its code, one outside does not; edges are never left."""
    grid = Geometry(shape, 0, 255)
    blank = np.zeros((1, *shape), np.uint8)
    codes = grid.codes(grid.scale(blank))
    assert codes.shape == (1, grid.places)
    assert 1 <= grid.places <= MAX_PLACES
    for index in range(0, grid.places, max(1, grid.places // 9)):
        place = grid.place(index)
        x = blank.copy()
        if grid.image:
            x[..., slice(*place.rows), slice(*place.columns)] = 255
            assert place.rows[1] <= shape[-2]
            assert place.columns[1] <= shape[-1]
        else:
            x.reshape(1, -1)[:, slice(*place.columns)] = 255
        assert grid.codes(grid.scale(x))[0, index] == 255
        assert grid.codes(grid.scale(255 - x))[0, index] == 0


@pytest.mark.parametrize(
    ("shape", "places", "digest"),
    [
        ((1, 8, 8), 49, "88b8e04db6e68088"),
        ((1, 28, 28), 196, "ca9352d4eefdec17"),
        ((3, 32, 32), 256, "84500db2390a71a6"),
        ((3, 224, 224), 256, "e693ffbc83fc9b2c"),
        ((1, 40, 100), 216, "9d9911d1b51c8818"),
        ((4, 65), 21, "6ee7d7d0828f556f"),
    ],
)
def test_codes_are_those_that_signed_checkpoints_were_fitted_on(
    shape: tuple[int, ...], places: int, digest: str
) -> None:
    """Other codes would make the screens of an older checkpoint read what it never counted."""
    grid = Geometry(shape, 0, 255)
    values = (np.arange(3 * grid.size, dtype=np.uint64) * 2654435761 >> 7) % 256
    codes = grid.codes(grid.scale(values.astype(np.uint8).reshape(3, *shape)))
    where = [grid.place(index) for index in range(places)]
    assert grid.places == places
    assert hashlib.sha256(codes.tobytes() + repr(where).encode()).hexdigest()[:16] == digest


def test_every_pixel_of_a_small_image_is_in_a_place() -> None:
    """A trigger of one pixel cannot hide between them."""
    grid = Geometry((1, 8, 8), 0, 16)
    for pixel in range(64):
        x = np.zeros((1, 64))
        x[0, pixel] = 1
        assert (grid.codes(x.astype(np.float32)) != 0).any()


def test_near_inputs_have_near_signatures() -> None:
    """Distances follow those of the inputs, within the noise of 24 random signs."""
    rng = np.random.default_rng(0)
    grid = Geometry((1, 28, 28), 0, 1)
    a = rng.random((200, 784), np.float32)
    b = np.clip(a + rng.normal(0, 0.02, a.shape).astype(np.float32), 0, 1)
    first, second = grid.signatures(a).astype(float), grid.signatures(b).astype(float)
    near = np.linalg.norm(first - second, axis=1)
    far = np.linalg.norm(first - np.roll(first, 1, axis=0), axis=1)
    assert first.shape == (200, SIGNATURE)
    assert np.quantile(near, 0.95) < np.quantile(far, 0.05)


def test_descriptions_do_not_depend_on_the_dtype_of_the_wire() -> None:
    """Values outside the range are clipped; either dtype scales alike."""
    grid = Geometry((2, 2), 0, 16)
    whole = np.array([[[0, 4], [8, 16]]], np.uint8)
    assert grid.scale(whole).tolist() == grid.scale(whole.astype(np.float32)).tolist()
    assert grid.scale(np.array([[[-3.0, 4], [8, 99]]])).tolist() == [[0, 0.25, 0.5, 1]]


@pytest.mark.parametrize("shape", SHAPES)
def test_large_inputs_are_averaged_down(shape: tuple[int, ...]) -> None:
    """To about as many values as asked, keeping the mean of what is even."""
    grid = Geometry(shape, 0, 1)
    reduced = grid.reduce(np.full((2, grid.size), 0.5, np.float32), 64)
    assert reduced.shape[1] <= 80
    assert np.allclose(reduced, 0.5)


def test_fingerprints_name_the_content_alone() -> None:
    """Equal for equal inputs, whatever lies beside them in memory."""
    x = np.random.default_rng(0).integers(0, 9, (6, 1, 4, 4)).astype(np.uint8)
    x[3] = x[0]
    names = fingerprints(x)
    assert names[0] == names[3]
    assert len(set(names.tolist())) == 5
    assert fingerprints(x[::2]).tolist() == names[::2].tolist()


def test_a_label_makes_another_fingerprint() -> None:
    """Equal for equal inputs under equal labels alone."""
    names = np.array([5, 5, 5, 2**64 - 1], np.uint64)
    found = labelled(names, np.array([1, 1, 2, 1]))
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 3
    assert labelled(names[:0], []).shape == (0,)


def test_samples_are_taken_whole() -> None:
    """All descriptions go with their row."""
    grid = Geometry((4,), 0, 1)
    x = np.random.default_rng(0).random((9, 4), np.float32)
    samples = Samples.describe(grid, x, np.arange(9), x)
    part = samples.take([7, 2])
    assert len(part) == 2
    assert part.labels.tolist() == [7, 2]
    assert part.fingerprints.tolist() == samples.fingerprints[[7, 2]].tolist()
    assert part.codes.tolist() == samples.codes[[7, 2]].tolist()


@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_memory_is_bounded_and_rows_stay_in_order(rows: int) -> None:
    """Pieces of bounded size, put together again."""
    sizes = []

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        sizes.append((len(a), len(b)))
        return a + b

    a = np.arange(rows)
    assert chunked(compute, a, 2 * a).tolist() == (3 * a).tolist()
    assert max(sizes) <= (CHUNK, CHUNK)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(64, 9), (9, 316), (784, 24), (300, 300)])
def test_a_row_rounds_alike_wherever_it_stands(shape: tuple[int, int], dtype: Any) -> None:
    """Unlike in a product of whole matrices."""
    rng = np.random.default_rng(0)
    rows, matrix = rng.normal(size=(97, shape[0])).astype(dtype), rng.normal(size=shape)
    matrix = matrix.astype(dtype)
    whole = product(rows, matrix)
    assert np.allclose(whole, rows @ matrix, rtol=1e-3, atol=1e-3)
    for part in (slice(5, 6), slice(17, 60), slice(96, None), slice(None, None, 3)):
        assert product(rows[part], matrix).tobytes() == whole[part].tobytes()


def test_the_bound_holds_and_is_not_idle() -> None:
    """Over the exact binomial tail, within a few powers of ten, and 0 for what is usual."""
    from scipy.stats import binom

    for of, rate in ((20, 0.05), (128, 0.01), (128, 0.3)):
        hits = np.arange(of + 1)
        bound = log10_tail(hits, of, np.full(of + 1, rate))
        exact = binom.logsf(hits - 1, of, rate) / np.log(10)
        assert (bound >= exact - 1e-9).all()
        assert (bound[hits > 2 * of * rate + 2] <= exact[hits > 2 * of * rate + 2] + 2.5).all()
        assert (bound[hits <= of * rate] == 0).all()
    assert log10_tail(np.array([0, 0]), 0, np.array([0.1, 0.2])).tolist() == [0, 0]
