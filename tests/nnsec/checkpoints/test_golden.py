"""The golden set: a few clean inputs that tell whether a checkpoint still does what it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Checkpoint, golden
from nnsec.checkpoints.golden import Agreement, Golden
from nnsec.errors import Unsafe
from tests.nnsec.checkpoints.small_checkpoint import Vectors


@pytest.fixture(scope="module")
def checkpoint(vectors: Vectors) -> Checkpoint:
    """A checkpoint in memory."""
    return vectors.create(Registry("memory://golden")).checkpoint


def test_it_is_small_and_read_back(checkpoint: Checkpoint, vectors: Vectors) -> None:
    """At most 64 rows, and at most 32 MiB of inputs; one at least."""
    found = checkpoint.golden
    assert len(found.x) == golden.ROWS
    again = Golden.restore(found.state())
    assert all(np.array_equal(again.state()[k], v) for k, v in found.state().items())
    few = Golden.take(checkpoint.suite, vectors.x[:3], vectors.y[:3])
    assert len(few.x) == 3


def test_large_inputs_make_it_shorter(
    checkpoint: Checkpoint, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never grows with the size of an input."""
    for most, rows in ((5 * vectors.x[0].nbytes, 5), (1, 1)):
        monkeypatch.setattr(golden, "MAX_BYTES", most)
        assert len(Golden.take(checkpoint.suite, vectors.x, vectors.y).x) == rows


def test_it_agrees_and_it_notices(checkpoint: Checkpoint, vectors: Vectors) -> None:
    """The same model agrees in full; other answers, or another model, do not."""
    good = checkpoint.check_golden()
    assert good == Agreement(64, 64, 64, good.accuracy)
    assert good.whole
    assert good.accuracy > 0.9
    old = checkpoint.golden
    moved = golden.agreement(checkpoint.suite, replace(old, score=old.score * 1.1 + 1))
    assert (moved.scores, moved.predictions, moved.whole) == (0, 64, False)
    swapped = golden.agreement(checkpoint.suite, replace(old, prediction=1 - old.prediction))
    assert (swapped.predictions, swapped.whole) == (0, False)


def test_one_in_twenty_may_lie_on_a_boundary() -> None:
    """Another device adds up in another order."""
    assert Agreement(64, 61, 64, 1.0).whole
    assert not Agreement(64, 60, 64, 1.0).whole
    assert not Agreement(64, 64, 60, 1.0).whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": None}, "incomplete: 'score'"),
        ({"y": np.zeros(3, np.int64)}, "different lengths"),
        ({"x": np.float32(0)}, "no lists"),
        ({"score": np.zeros((64, 1), np.float32)}, "no lists"),
        ({name: np.zeros(0) for name in ("x", "y", "prediction", "score")}, "lengths"),
    ],
    ids=["missing", "short", "number", "table", "empty"],
)
def test_what_is_no_golden_set_is_unsafe(
    checkpoint: Checkpoint, changes: dict[str, Any], words: str
) -> None:
    """Parts that are missing, or of different lengths."""
    state = checkpoint.golden.state() | changes
    with pytest.raises(Unsafe, match=words):
        Golden.restore({name: array for name, array in state.items() if array is not None})
