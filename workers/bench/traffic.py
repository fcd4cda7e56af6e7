"""Inputs for measurements: honest clients, and attackers who send noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.inference import encode_request
from workers.demo.material import Material

DISTINCT = 2000
CLIENTS = 50
ATTACK_EVERY = 10
"""One input in so many is an attacker's …"""
ATTACK_LENGTH = 40
"""… and after so many another takes over."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One input, ready to be sent; its score has its id as key."""

    id: bytes
    client: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class Traffic:
    """Writes inputs that are all different in their ids.

    Parameters
    ----------
    images, noise:
        (n, shape) in the wire dtype; honest clients take turns through the first, attackers
        through the second.
    """

    def __init__(self, model: str, images: NDArray[Any], noise: NDArray[Any]) -> None:
        self._model = model
        self._images = images
        self._noise = noise
        self._numbers = count()

    @classmethod
    def drawn(cls, material: Material, seed: int) -> Self:
        """Honest variants of held-out images, and noise over the whole range of values."""
        images = material.honest(DISTINCT, seed=seed).x
        low, high = material.input.range
        noise = np.random.default_rng(seed).integers(int(low), int(high) + 1, images.shape)
        return cls(material.name, images, noise.astype(images.dtype))

    def honest(self, n: int) -> list[Sent]:
        """Inputs of honest clients."""
        return [self._honest(next(self._numbers)) for _ in range(n)]

    def mixed(self, n: int) -> list[Sent]:
        """Inputs of honest clients, and one in ten of an attacker, who changes all the time."""
        return list(self._mixed(n))

    def _mixed(self, n: int) -> Iterator[Sent]:
        for i in range(n):
            number = next(self._numbers)
            if i % ATTACK_EVERY:
                yield self._honest(number)
            else:
                client = f"mallory-{number // (ATTACK_EVERY * ATTACK_LENGTH)}"
                yield self._write(self._noise, number, client)

    def _honest(self, number: int) -> Sent:
        return self._write(self._images, number, f"app-{number % CLIENTS}")

    def _write(self, images: NDArray[Any], number: int, client: str) -> Sent:
        name = f"input-{number}"
        x = images[number % len(images)][None]
        value, headers = encode_request(model=self._model, x=x, id=name, client=client)
        return Sent(name.encode(), client, value, headers)
