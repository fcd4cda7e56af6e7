"""What the detectors cost beside the model that they watch, all in one run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from nnsec.detectors import Detector
from nnsec.network import Forward, Network
from nnsec.splits import Splits
from nnsec.suite import Suite
from workers.demo.material import Material

BATCHES = (1, 32, 256)
IN_DOUBT = 0.3
"""Share of inputs in doubt under which the suite is measured too: an attack, or drift."""
POOL = 2000
"""Honest inputs that batches are drawn from."""
ROUNDS = 9
SECONDS = 0.15
"""Each figure of a round is the mean over about so long."""
MICRO = 1e6


@dataclass(frozen=True, slots=True)
class Line:
    """One batch size; times in µs an input, medians over rounds.

    Parameters
    ----------
    bare:
        The model alone on the whole batch at once, as a plain loop would run it.
    forward:
        The model in passes of one size, as replays need it.
    whole:
        All of the suite: forward, detectors, fusion, p-values.
    doubtful:
        The same with 30 % of the inputs in doubt.
    ratio, ratio_doubtful:
        Medians over rounds of bare / whole and bare / doubtful, taken in the same round.
    in_doubt, in_doubt_doubtful:
        Shares of inputs that went through the costly detectors.
    """

    batch: int
    bare: float
    forward: float
    whole: float
    doubtful: float
    ratio: float
    ratio_doubtful: float
    in_doubt: float
    in_doubt_doubtful: float


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark's result.

    Parameters
    ----------
    threads:
        Of torch.
    detectors:
        µs an input of each detector by itself, at the last batch size; what several share is
        counted with the first that asks.
    """

    dataset: str
    device: str
    threads: int
    tile: int
    lines: tuple[Line, ...]
    detectors: Mapping[str, float]

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"lines": [asdict(line) for line in self.lines]}


def measure(
    dataset: str,
    folder: str | None,
    *,
    seed: int,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Report:
    """Train a network for one epoch, fit the suite, and time both.

    Parameters
    ----------
    dataset, folder:
        As in `datasets.load`.
    seed:
        Of the deal and of the batches.
    batches:
        Inputs a batch.
    rounds, seconds:
        Each figure is a median over rounds, each of about so many seconds.
    """
    material = Material.load(dataset, folder, seed=seed)
    quick = replace(material, recipe=replace(material.recipe, epochs=1))
    network = quick.network(quick.trained())
    x, y = material.reference_x, material.reference_y
    suite = Suite.fit(
        network, x, y, splits=Splits.stratified(y, seed=seed), seed=seed, alpha=material.spec.alpha
    )
    pool = material.honest(POOL, seed=1).x
    lines = [_line(suite, pool, batch, rounds, seconds) for batch in batches]
    return Report(
        dataset=dataset,
        device=str(network.device),
        threads=torch.get_num_threads(),
        tile=network.tile,
        lines=tuple(lines),
        detectors=_singly(suite, pool[: batches[-1]], rounds, seconds),
    )


def _line(suite: Suite, pool: NDArray[Any], batch: int, rounds: int, seconds: float) -> Line:
    network = suite.network
    plain = as_written(network)
    through = suite.through(pool)
    usual = _batches(pool, through, batch, float(through.mean()))
    doubtful = _batches(pool, through, batch, IN_DOUBT)
    found = _rounds(
        [
            lambda: [_bare(plain, network, x) for x in usual],
            lambda: [network.forward(x) for x in usual],
            lambda: [suite.score(x) for x in usual],
            lambda: [suite.score(x) for x in doubtful],
        ],
        rounds,
        seconds,
    )
    bare, forward, whole, doubt = np.median(found, axis=0) * MICRO / (batch * len(usual))
    ratio, ratio_doubtful = np.median(found[:, :1] / found[:, 2:], axis=0)
    return Line(
        batch, float(bare), float(forward), float(whole), float(doubt), float(ratio),
        float(ratio_doubtful), _share(suite, usual), _share(suite, doubtful),
    )  # fmt: skip


def as_written(network: Network) -> nn.Module:
    """A copy of the model as users have it: weights in the usual order, and nothing hooked on.

    What is hooked on keeps the features' candidates of each pass until `Network` runs the next.
    """
    plain = copy.deepcopy(network.module)
    for layer in plain.modules():
        layer._forward_pre_hooks.clear()  # noqa: SLF001 - there is no public way to all of them
    convert_conv2d_weight_memory_format(plain, torch.contiguous_format)
    return plain


def _bare(plain: nn.Module, network: Network, x: NDArray[Any]) -> NDArray[np.int64]:
    """What a user's loop would do: scale, run the model on the batch as it is, take the best."""
    with torch.inference_mode():
        best: NDArray[np.int64] = plain(network.scale(x)).argmax(1).cpu().numpy()
    return best


def _batches(
    pool: NDArray[Any], through: NDArray[np.bool_], batch: int, share: float
) -> list[NDArray[Any]]:
    """Batches of the pool, of which about ``share`` of all rows go through all detectors.

    As many batches as make 100 rows or more, so that a share of rows can be met with batches of
    one; in each the rows in doubt come as they fall.
    """
    count = max(1, -(-100 // batch))
    return list(mixed(pool, through, share, batch * count).reshape(count, batch, *pool.shape[1:]))


def mixed(pool: NDArray[Any], through: NDArray[np.bool_], share: float, rows: int) -> NDArray[Any]:
    """Rows of the pool in a random order, of which a share goes through all detectors.

    Parameters
    ----------
    through:
        Which rows of the pool do.
    """
    wanted = round(share * rows)
    some = np.resize(np.flatnonzero(through), wanted)
    rest = np.resize(np.flatnonzero(~through), rows - wanted)
    order = np.random.default_rng(0).permutation(np.concatenate([some, rest]))
    found: NDArray[Any] = pool[order]
    return found


def _share(suite: Suite, batches: Sequence[NDArray[Any]]) -> float:
    return float(suite.through(np.concatenate(batches)).mean())


def _rounds(
    works: Sequence[Callable[[], object]], rounds: int, seconds: float
) -> NDArray[np.float64]:
    """(rounds, works) seconds a call; every round does all works, under the same load."""
    repeats = [max(1, round(seconds / max(_time(work, 2), 1e-9))) for work in works]
    return np.array(
        [
            [_time(work, times) for work, times in zip(works, repeats, strict=True)]
            for _ in range(rounds)
        ]
    )


def _time(work: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def _singly(suite: Suite, x: NDArray[Any], rounds: int, seconds: float) -> dict[str, float]:
    forward = suite.network.forward(x)
    shared: dict[str, Any] = {}

    def work(detector: Detector) -> Callable[[], object]:
        def run() -> None:
            fresh = Forward(forward.inputs, forward.logits, forward.features, dict(shared))
            detector.score(fresh, suite.network)

        return run

    costs: dict[str, float] = {}
    for detector in suite.detectors:
        found = _rounds([work(detector)], rounds, seconds / 3)
        costs[detector.name] = float(np.median(found)) * MICRO / len(x)
        fresh = Forward(forward.inputs, forward.logits, forward.features, shared)
        detector.score(fresh, suite.network)  # leaves what it shares to the next
    return costs
