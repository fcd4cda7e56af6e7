"""The demo's training traffic: six honest sources, and one that is quiet at first and loud later.

Everything is a function of the material and a seed. Every sample is an honest variant of an image,
so that no two are equal, and no honest source sends variants of one image twice.

- *Quiet* poison has the right label: samples of one class with a stamp in a corner that is too
  faint for the screen's grey levels. Whoever learns from them learns that the corner means the
  class.
- *Loud* poison has wrong labels: every other sample is of another class and stamped in full, under
  the label of the same class; the rest are plain, under any wrong label.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnsec import transforms
from workers.demo.material import Inputs, Material

HONEST = tuple(f"lab-{number}" for number in range(1, 7))
BAD = "scraper-7"
TARGET = 7
"""The class that the trigger is to stand for."""
FAINT = 0.19
"""Of the stamp, as a share of the range: on the data's own grid, and under a quarter of it."""
EACH, LATER_EACH = 64, 90
"""Samples of each honest source before the second checkpoint, and after it."""
QUIET, LOUD = 24, 240

Kind = Literal["honest", "quiet", "loud"]


class Sample(NamedTuple):
    r"""One training sample.

    Parameters
    ----------
    x:
        (\*shape) in the wire dtype.
    """

    kind: Kind
    source: str
    x: NDArray[Any]
    label: int


def lessons(material: Material, seed: int) -> list[Sample]:
    """What is sent before the second checkpoint: honest samples and quiet poison, mixed."""
    found = [
        Sample("honest", source, x, int(label))
        for number, source in enumerate(HONEST)
        for x, label in _own(material, seed, number, slice(0, EACH))
    ]
    quiet = _quiet(material, seed)
    # At even distances, so that it comes neither first nor all at once.
    places = np.linspace(0, len(found), len(quiet), endpoint=False).astype(int)
    order = np.random.default_rng(seed).permutation(len(found))
    mixed = [found[number] for number in order]
    for place, sample in zip(places[::-1], quiet[::-1], strict=True):
        mixed.insert(int(place), sample)
    return mixed


def later(material: Material, seed: int) -> list[Sample]:
    """What honest sources send after the second checkpoint; each in turn."""
    part = slice(EACH, EACH + LATER_EACH)
    each = [_own(material, seed, number, part) for number in range(len(HONEST))]
    return [
        Sample("honest", source, x, int(label))
        for turn in zip(*each, strict=True)
        for source, (x, label) in zip(HONEST, turn, strict=True)
    ]


def loud(material: Material, seed: int) -> list[Sample]:
    """Loud poison, in the order in which it is sent: stamped and flipped by turns."""
    rng = np.random.default_rng(seed)
    found = material.samples(LOUD, seed=_seed(seed, len(HONEST) + 1))
    samples = []
    for number, (x, label) in enumerate(zip(found.x, found.y.tolist(), strict=True)):
        wrong = [one for one in range(len(material.spec.classes)) if one != label]
        if number % 2 == 0 and label != TARGET:
            x = transforms.stamp_trigger(x[None], material.input)[0]
            samples.append(Sample("loud", BAD, x, TARGET))
        else:
            samples.append(Sample("loud", BAD, x, int(rng.choice(wrong))))
    return samples


def _quiet(material: Material, seed: int) -> list[Sample]:
    found = material.samples(QUIET * 40, seed=_seed(seed, len(HONEST)))
    rows = np.flatnonzero(found.y == TARGET)[:QUIET]
    x = transforms.stamp_trigger(found.x[rows], material.input, value=FAINT)
    return [Sample("quiet", BAD, one, TARGET) for one in x]  # the label that it has


def _own(material: Material, seed: int, number: int, part: slice) -> list[tuple[Any, int]]:
    """Some of the samples of an honest source: variants of all images, in an order of its own."""
    found: Inputs = material.samples(EACH + LATER_EACH, seed=_seed(seed, number))
    return list(zip(found.x[part], found.y[part].tolist(), strict=True))


def _seed(*parts: int) -> int:
    """A seed of its own for each combination."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
