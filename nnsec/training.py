"""Training on mixed clean and adversarial batches, and what it was worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnsec.attacks import pgd
from nnsec.errors import ConfigError
from nnsec.settings import Input

EVALUATED = 256
"""Inputs a pass when accuracy is measured."""

Progress = Callable[[int, int, float], object]
"""Called after each step with the steps done, the steps in all, and the step's loss."""


@dataclass(frozen=True, slots=True)
class Adversarial:
    """The attack to train against: PGD in L∞.

    Parameters
    ----------
    epsilon:
        Radius as a share of the input range, in (0, 1].
    steps:
        Of PGD, from a random start; at least 1.
    """

    epsilon: float
    steps: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of inputs that are classified right.

    Parameters
    ----------
    n:
        Inputs.
    clean:
        As they are.
    robust:
        Under PGD of ``epsilon`` and ``steps``.
    """

    n: int
    clean: float
    robust: float
    epsilon: float
    steps: int


def fit(
    module: nn.Module,
    x: NDArray[Any],
    y: NDArray[np.integer],
    *,
    input: Input,  # noqa: A002 - the name of the configuration's table
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    adversarial: Adversarial | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    r"""Train a classifier in place; with ``adversarial``, half of each batch is under attack.

    The optimiser is Adam, its rate falls to 0 along half a cosine. The attack sees the module in
    evaluation mode, so that what BatchNorm remembers comes from the training batches alone. The
    result is a function of the arguments on one device; torch's global generator is left as it was.

    Parameters
    ----------
    module:
        Takes (batch, \*shape) float32 in [0, 1] and gives (batch, classes) logits.
    x:
        (n, \*shape) in the wire dtype.
    y:
        (n,) classes.
    input:
        Shape, dtype and range of one input.
    epochs:
        Passes over the data, at least 1.
    batch:
        Inputs a step, at most; attacked ones come on top.
    lr:
        Learning rate at the start.
    seed:
        Of the order, of dropout, and of the attack's starts.
    adversarial:
        None for clean training.
    progress:
        Called after each step; what it raises ends the training.

    Returns
    -------
    nn.Module
        The module, in evaluation mode.

    Raises
    ------
    ConfigError
        Without data, or if the data do not fit the module, or training went to infinity.

    References
    ----------
    Madry and others, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018; mixed
    batches: Kurakin, Goodfellow and Bengio, "Adversarial Machine Learning at Scale", 2017.
    """
    if not len(x) or len(x) != len(y):
        raise ConfigError(f"{len(x)} inputs and {len(y)} labels: training needs one label for each")
    device = _device(module)
    # A copy: a caller's array may be read-only.
    labels = torch.from_numpy(np.array(y, np.int64)).to(device)
    parts = math.ceil(len(x) / batch)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * parts)
    done = 0
    with _seeded(seed, device):
        for _ in range(epochs):
            # Nearly equal parts: BatchNorm cannot take a last batch of one.
            for rows in torch.randperm(len(x)).tensor_split(parts):
                some, classes = _scaled(x[rows.numpy()], input, device), labels[rows.to(device)]
                if adversarial is not None:
                    attacked = _attack(module, some, classes, adversarial, seed + done)
                    some, classes = torch.cat([some, attacked]), classes.repeat(2)
                loss = _step(module, optimizer, some, classes)
                schedule.step()
                done += 1
                if progress is not None:
                    progress(done, epochs * parts, loss)
    return module.eval()


def replayed(y: NDArray[np.integer], n: int, *, seed: int) -> NDArray[np.int64]:
    """Choose rows to train on beside new ones, so that no class is forgotten.

    Parameters
    ----------
    y:
        (rows,) classes of what there is.
    n:
        How many to choose.
    seed:
        Of the draw.

    Returns
    -------
    (n,) row numbers: each class in turn, as long as it has rows; over again where n is larger.

    Examples
    --------
    >>> y = np.array([0, 0, 0, 0, 1, 2])
    >>> sorted(y[replayed(y, 3, seed=0)].tolist())
    [0, 1, 2]
    """
    drawn = np.random.default_rng(seed).permutation(len(y))
    order = drawn[np.argsort(y[drawn], kind="stable")]
    place = np.arange(len(y)) - np.searchsorted(y[order], y[order])  # among those of its class
    return np.resize(order[np.argsort(place, kind="stable")], n)


def evaluate(
    module: nn.Module,
    x: NDArray[Any],
    y: NDArray[np.integer],
    *,
    input: Input,  # noqa: A002 - the name of the configuration's table
    epsilon: float = 0.1,
    steps: int = 20,
    seed: int = 0,
) -> Accuracy:
    r"""Accuracy on inputs as they are, and under PGD (L∞).

    Parameters
    ----------
    module:
        A classifier; its mode is kept.
    x:
        (n, \*shape) held-out inputs in the wire dtype.
    y:
        (n,) their classes.
    input:
        Shape, dtype and range of one input.
    epsilon:
        Radius as a share of the input range.
    steps:
        Of the attack.
    seed:
        Of its random starts.

    Raises
    ------
    ConfigError
        Without data.
    """
    if not len(x):
        raise ConfigError("there is no input to measure accuracy on")
    device, mode = _device(module), module.training
    labels = torch.from_numpy(np.array(y, np.int64)).to(device)
    module.eval()
    clean = robust = 0
    for start in range(0, len(x), EVALUATED):
        some = _scaled(x[start : start + EVALUATED], input, device)
        classes = labels[start : start + EVALUATED]
        attacked = pgd(module, some, classes, epsilon=epsilon, steps=steps, seed=seed + start)
        with torch.no_grad():
            clean += int((module(some).argmax(1) == classes).sum())
            robust += int((module(attacked).argmax(1) == classes).sum())
    module.train(mode)
    return Accuracy(len(x), clean / len(x), robust / len(x), epsilon, steps)


def _attack(module: nn.Module, x: Tensor, y: Tensor, against: Adversarial, seed: int) -> Tensor:
    module.eval()
    return pgd(module, x, y, epsilon=against.epsilon, steps=against.steps, seed=seed)


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    module.train()
    optimizer.zero_grad()
    try:
        loss = functional.cross_entropy(module(x), y)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(f"the module does not take the training data: {error}") from error
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ConfigError("training went to infinity; choose a smaller learning rate")
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value


def _scaled(x: NDArray[Any], spec: Input, device: torch.device) -> Tensor:
    low, high = spec.range
    tensor = torch.from_numpy(np.array(x)).to(device)
    return (tensor.float() - low) / (high - low)


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generator: seed it here, and give it back as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
