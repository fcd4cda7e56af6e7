"""Sizes of pieces that give the same bits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnsec.detectors import Detector
from nnsec.detectors.base import Stateless
from nnsec.network import Forward, Network
from nnsec.settings import Input
from nnsec.shapes import alike, pieces
from nnsec.stages import PIECE, Stages
from nnsec.suite import Suite


def test_sizes_end_where_figures_differ() -> None:
    asked: list[int] = []

    def run(size: int) -> list[NDArray[Any]]:
        asked.append(size)
        return [np.ones(16), np.full(16, 0.1 if size < 4 else 0.2)]

    assert alike(run, 16) == (4, 8, 16)
    assert asked == [16, 8, 4, 2]


def test_a_size_that_is_odd_is_not_halved() -> None:
    assert alike(lambda _: [np.ones(3)], 3) == (3,)
    assert alike(lambda _: [np.ones(6)], 6) == (3, 6)


@pytest.mark.parametrize("rows", range(1, 40))
def test_pieces_cover_all_rows_once_and_fit(rows: int) -> None:
    found = list(pieces(rows, (4, 8, 16)))
    assert [i for part, _ in found for i in range(part.start, part.stop)] == list(range(rows))
    assert all(size == 16 for _, size in found[:-1])
    part, size = found[-1]
    left = part.stop - part.start
    assert left <= size
    assert size == 4 or left > size // 2


class Telling(nn.Module):
    """Its logits tell how many inputs it was given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + len(x)


def test_a_model_that_tells_the_size_of_its_batch_keeps_one_size() -> None:
    network = Network(Telling(), Input(shape=(1, 8, 8)), device="cpu")
    assert network.sizes == (network.tile,)


class Counting(Stateless):
    """Its score is the number of inputs that it was given."""

    name: ClassVar[str] = "counting"

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        return np.full(len(forward), float(len(forward)))


def test_a_detector_that_tells_the_size_keeps_its_stage_in_full_pieces(on_images: Any) -> None:
    suite: Suite = on_images.suite()
    detectors: list[Detector] = [*suite.detectors, Counting()]
    stages = Stages(suite.network, detectors)
    forward = suite.network.forward(on_images.x[:3])
    assert (stages.first(forward)[:, -1] == PIECE).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 17, 31, 33])
def test_every_row_has_the_bits_that_it_has_in_full_pieces(on_images: Any, rows: int) -> None:
    suite: Suite = on_images.suite()
    network, x = suite.network, on_images.x[:64]
    stages = Stages(network, suite.detectors)
    small, whole = network.forward(x[:rows]), network.forward(x)
    assert torch.equal(small.logits, whole.logits[:rows])
    assert torch.equal(small.features, whole.features[:rows])
    np.testing.assert_array_equal(stages.whole(small), stages.whole(whole)[:rows])
