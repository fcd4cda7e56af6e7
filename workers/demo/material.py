"""What the demo is made of: a network to train, clean reference data, and inputs of every kind.

All that is drawn comes from the data set, its seed, and the seed of the call (take another one for
each call, or variants repeat); nothing is sent or written here. The images are dealt out once, so
that no image serves two ends: the network's own, the reference on which detectors are fitted and
calibrated, those that clients send, and those that sources of training samples send.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnsec import attacks, datasets, models, training, transforms
from nnsec.network import Network
from nnsec.settings import Input, ModelTable

EPSILONS = (0.1, 0.2, 0.3)
"""Radii of the attack in L∞, as shares of the range; each has an equal share of the inputs."""
ATTACK_STEPS = 20
ALPHA = 0.005
"""With 399 to 598 calibration points, p ≤ ALPHA says: above the second largest score."""
BATCH = 64
CHUNK = 512
"""Inputs attacked at once."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How images are dealt out, and how the network is trained.

    Parameters
    ----------
    train, reference, inputs, samples:
        Images for the network, the reference data, clients, and sources of training samples.
    copies:
        Honest variants of each training image.
    epochs, lr, epsilon, steps:
        As in `training.fit` and `training.Adversarial`.
    """

    architecture: str
    train: int
    reference: int
    inputs: int
    samples: int
    copies: int
    epochs: int
    lr: float
    epsilon: float = 0.1
    steps: int = 2


RECIPES = {
    "digits": Recipe("nnsec.models:small_cnn", 447, 1010, 170, 170, copies=4, epochs=10, lr=5e-3),
    "mnist": Recipe("nnsec.models:mnist_cnn", 6000, 1400, 1500, 1500, copies=1, epochs=3, lr=2e-3),
}


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    r"""Inputs with their classes, in the order in which they are sent.

    Parameters
    ----------
    x:
        (n, \*shape) in the wire dtype.
    y:
        (n,) int64.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, eq=False)
class Attack:
    r"""Inputs of the attacker, in the order in which they are sent.

    Parameters
    ----------
    x, original:
        (n, \*shape) in the wire dtype.
    y:
        (n,) true classes.
    epsilon:
        (n,) shares of the range.
    """

    x: NDArray[Any]
    original: NDArray[Any]
    y: NDArray[np.int64]
    epsilon: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.y)

    def successful(self, network: Network) -> NDArray[np.bool_]:
        """(n,) whether the original is classified right, and what is sent is not."""
        right = network.forward(self.original).prediction == self.y
        found: NDArray[np.bool_] = right & (network.forward(self.x).prediction != self.y)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    r"""The demo's data, dealt out.

    Parameters
    ----------
    name:
        Of the data set, and of the model.
    spec:
        As in ``[models.NAME]``.
    seed:
        Of how the images were dealt out.
    own:
        The network's images; as they are in the data set.
    reference_x, reference_y:
        (n, \*shape) honest variants of images and (n,) their classes; drawn without explicit
        splits, 40 % of them calibrate: at least 400.
    held:
        Images that clients send variants of; as they are in the data set.
    sampled:
        Images that sources of training samples send variants of; as they are in the data set.
    recipe:
        How they were dealt out, and how the network is trained.
    """

    name: str
    spec: ModelTable
    seed: int
    own: Inputs
    reference_x: NDArray[Any]
    reference_y: NDArray[np.int64]
    held: Inputs
    sampled: Inputs
    recipe: Recipe

    @classmethod
    def load(cls, name: str, folder: str | None = None, *, seed: int) -> Material:
        """Load a data set and deal it out.

        Parameters
        ----------
        name, folder:
            As in `datasets.load`.
        seed:
            Of the deal.

        Raises
        ------
        ConfigError
            As `datasets.load`.
        """
        data = datasets.load(name, folder)
        recipe = RECIPES[name]
        spec = ModelTable(
            architecture=recipe.architecture,
            input=data.input,
            classes=tuple(str(label) for label in range(10)),
            alpha=ALPHA,
        )
        order = np.random.default_rng(seed).permutation(len(data.x))
        bounds = np.cumsum([recipe.train, recipe.reference, recipe.inputs, recipe.samples])
        own, reference, held, sampled = (
            Inputs(data.x[rows], data.y[rows]) for rows in np.split(order, bounds)[:4]
        )
        honest = transforms.honest(reference.x, data.input, seed)
        return cls(name, spec, seed, own, honest, reference.y, held, sampled, recipe)

    @property
    def input(self) -> Input:
        """Shape, dtype and range of one input."""
        return self.spec.input

    def trained(self, progress: training.Progress | None = None) -> nn.Module:
        """The first checkpoint's network: adversarially trained on honest variants.

        Parameters
        ----------
        progress:
            As in `training.fit`.
        """
        recipe = self.recipe
        variants = [
            transforms.honest(self.own.x, self.input, _seed(self.seed, copy))
            for copy in range(recipe.copies)
        ]
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            module = models.build(recipe.architecture, recipe.architecture)
        return training.fit(
            module,
            np.concatenate(variants),
            np.tile(self.own.y, recipe.copies),
            input=self.input,
            epochs=recipe.epochs,
            batch=BATCH,
            lr=recipe.lr,
            seed=self.seed,
            adversarial=training.Adversarial(recipe.epsilon, recipe.steps),
            progress=progress,
        )

    def network(self, module: nn.Module) -> Network:
        """A module as the monitor runs it, to attack or to measure."""
        return Network(module, self.input, self.spec.features, self.spec.device)

    def honest(self, n: int, *, seed: int) -> Inputs:
        """Draw ``n`` inputs of honest clients, none equal to another."""
        return self._vary(self.held, n, seed)

    def samples(self, n: int, *, seed: int) -> Inputs:
        """Draw ``n`` rightly labelled samples of honest sources, none equal to another."""
        return self._vary(self.sampled, n, seed)

    def attack(self, network: Network, n: int, *, seed: int) -> Attack:
        """Make ``n`` inputs of an attacker who knows the network's weights.

        PGD in L∞ with 20 steps from a random start, then rounded to the data's own grid, so that
        nothing gives them away that a sender could avoid. Not all of them succeed.

        Parameters
        ----------
        network:
            What is attacked.
        n:
            Over all ε, in equal shares, mixed.
        seed:
            Of the originals and the starts.
        """
        originals = self.honest(n, seed=seed)
        epsilon = np.resize(np.array(EPSILONS), n)
        x = np.empty_like(originals.x)
        for number, radius in enumerate(EPSILONS):
            mine = np.flatnonzero(epsilon == radius)
            for start in range(0, len(mine), CHUNK):
                rows = mine[start : start + CHUNK]
                found = attacks.pgd(
                    network.module,
                    network.scale(originals.x[rows]),
                    torch.from_numpy(originals.y[rows]).to(network.device),
                    epsilon=radius,
                    steps=ATTACK_STEPS,
                    seed=_seed(seed, number, start),
                )
                x[rows] = transforms.to_grid(found.cpu().numpy(), self.input)
        return Attack(x, originals.x, originals.y, epsilon)

    def drifting(self, amount: NDArray[np.floating], seed: int) -> Inputs:
        """Draw inputs of honest clients whose camera works loose and wears out.

        Parameters
        ----------
        amount:
            (n,) from 0 (none) to 1 (40 degrees, and noise of 0.15 of the range).
        seed:
            Of all that is drawn.
        """
        plain = self._vary(self.held, len(amount), seed)
        x = transforms.drift(plain.x, self.input, amount, _seed(seed, 1))
        return replace(plain, x=x)

    def _vary(self, images: Inputs, n: int, seed: int) -> Inputs:
        """``n`` honest variants: all images once in a new order, then all again in another."""
        rng = np.random.default_rng(_seed(self.seed, seed))
        x, y = images.x[:0], images.y[:0]
        while len(y) < n:
            rows = rng.permutation(len(images))[: n - len(y)]
            more = transforms.honest(images.x[rows], self.input, int(rng.integers(2**32)))
            x, y = np.concatenate([x, more]), np.concatenate([y, images.y[rows]])
            _, first = np.unique(x.reshape(len(x), -1), axis=0, return_index=True)
            x, y = x[np.sort(first)], y[np.sort(first)]
        return Inputs(x[:n], y[:n])


def _seed(*parts: int) -> int:
    """A seed of its own for each combination."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
