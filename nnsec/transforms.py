"""Changes to inputs: what honest senders vary, what drift does, and a backdoor's trigger.

All take and give the wire dtype, on the data's own grid (whole numbers where it is uint8) and
within its range, so that nothing but what they are meant to change gives their results away.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nnsec.settings import Input

SHIFT = 0.06
"""Honest shifts: at most this share of the side, to each side (half a pixel of 8)."""
ROTATION = math.radians(8.0)
BRIGHTNESS = 0.1
DRIFT_ROTATION = math.radians(40.0)
DRIFT_NOISE = 0.15
TRIGGER = 4
"""The trigger's side is the image's divided by this."""


def honest(x: NDArray[Any], input: Input, seed: int) -> NDArray[Any]:  # noqa: A002 - as in settings
    r"""Shift, turn and brighten each input a little, as honest senders' inputs differ.

    Parameters
    ----------
    x:
        (n, \*shape) in the wire dtype. Vectors are only brightened.
    input:
        Shape, dtype and range of one input.
    seed:
        Of the draws; each row has its own.

    Returns
    -------
    (n, \*shape) in the wire dtype; new, ``x`` is not changed.

    Examples
    --------
    >>> digits = Input(shape=(1, 8, 8), range=(0, 16))
    >>> honest(np.full((2, 1, 8, 8), 16, np.uint8), digits, seed=0).max() <= 16
    True
    """
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-2 * SHIFT, 2 * SHIFT, (len(x), 2))  # the grid's side is 2
    angle = rng.uniform(-ROTATION, ROTATION, len(x))
    bright = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, len(x))
    scaled = _scaled(x, input)
    if is_image(input):
        scaled = _moved(scaled, angle, shift)
    return _on_grid(scaled * bright.reshape(-1, *[1] * len(input.shape)), input)


def drift(
    x: NDArray[Any],
    input: Input,  # noqa: A002 - as in settings
    amount: float | NDArray[np.floating],
    seed: int,
) -> NDArray[Any]:
    r"""Turn each input and add noise, as a camera does that works loose and wears out.

    Parameters
    ----------
    x:
        (n, \*shape) in the wire dtype. Vectors only get noise.
    input:
        Shape, dtype and range of one input.
    amount:
        0 (none) to 1 (40 degrees, and noise of 0.15 of the range), for all rows or (n,) for each.
    seed:
        Of the noise.

    Returns
    -------
    (n, \*shape) in the wire dtype.
    """
    much = np.broadcast_to(np.asarray(amount, np.float64), (len(x),))
    scaled = _scaled(x, input)
    if is_image(input):
        scaled = _moved(scaled, much * DRIFT_ROTATION, np.zeros((len(x), 2)))
    noise = np.random.default_rng(seed).normal(0.0, DRIFT_NOISE, scaled.shape)
    return _on_grid(scaled + noise * much.reshape(-1, *[1] * len(input.shape)), input)


def stamp_trigger(
    x: NDArray[Any],
    input: Input,  # noqa: A002 - as in settings
    *,
    value: float = 1.0,
) -> NDArray[Any]:
    r"""Set a square in the lower right corner, the same in each input: a backdoor's trigger.

    Parameters
    ----------
    x:
        (n, \*shape) in the wire dtype. Of vectors the last quarter is set.
    input:
        Shape, dtype and range of one input.
    value:
        Of the trigger, from 0 (the range's lower end) to 1 (its upper end).

    Returns
    -------
    (n, \*shape) in the wire dtype.
    """
    scaled = _scaled(x, input)
    height, width = (input.shape if is_image(input) else (1, *input.shape))[-2:]
    planes = scaled.reshape(len(scaled), -1, height, width)
    planes[..., -max(1, height // TRIGGER) :, -max(1, width // TRIGGER) :] = value
    return _on_grid(scaled, input)


def to_grid(scaled: NDArray[np.floating], input: Input) -> NDArray[Any]:  # noqa: A002 - as above
    r"""Values in [0, 1] as a sender would send them: wire dtype, rounded to its grid.

    Parameters
    ----------
    scaled:
        (n, \*shape) in [0, 1]; what is outside is clipped.
    input:
        Shape, dtype and range of one input.
    """
    return _on_grid(np.asarray(scaled, np.float64), input)


def is_image(input: Input) -> bool:  # noqa: A002 - as above
    """Whether inputs are (height, width) or (channels, height, width)."""
    return len(input.shape) in {2, 3}


def _scaled(x: NDArray[Any], spec: Input) -> NDArray[np.float64]:
    low, high = spec.range
    scaled: NDArray[np.float64] = (np.array(x, np.float64, order="C") - low) / (high - low)
    return scaled


def _on_grid(scaled: NDArray[np.float64], spec: Input) -> NDArray[Any]:
    low, high = spec.range
    values = low + np.clip(scaled, 0.0, 1.0) * (high - low)
    if spec.dtype == "uint8":
        values = np.rint(values)
    found: NDArray[Any] = np.clip(values.astype(spec.dtype), low, high).astype(spec.dtype)
    return found


def _moved(
    scaled: NDArray[np.float64], angle: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turned by ``angle`` (n,) and shifted by (n, 2) in half sides; what comes in is empty."""
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)]
    theta = torch.from_numpy(np.stack(rows, 1))
    images = torch.from_numpy(scaled).reshape(len(scaled), -1, *scaled.shape[-2:])
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    back: NDArray[np.float64] = moved.reshape(scaled.shape).numpy()
    return back
