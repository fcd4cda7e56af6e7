"""A user's classifier behind one forward pass that gives all that the detectors share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from nnsec.errors import ConfigError
from nnsec.settings import Input
from nnsec.shapes import Run, alike, pieces

T = TypeVar("T")

CUDA_TILE = 256
SMALL_INPUT = 256
"""Inputs of fewer values go through the model 32 at a time on a CPU, larger ones 8 at a time.

From 8 inputs of 784 values on, a pass costs the same an input (measured: 3 % from the best), and
one that comes alone waits for 7 empty places and not for 31. Inputs of 64 values cost half in a
tile of 32 of what they cost in a tile of 8."""
SMALLEST_IMAGE = 4
"""Fewer pixels a side than this are no image: no detector can filter them."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward pass over a batch gave.

    Parameters
    ----------
    inputs:
        (batch, *shape) float32 on the device, scaled to [0, 1].
    logits:
        (batch, classes) float32.
    features:
        (batch, features) float32.
    shared:
        Figures that several detectors need, computed by the first that asks (see `once`).
    """

    inputs: Tensor
    logits: Tensor
    features: Tensor
    shared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return int(self.logits.shape[0])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Forward:
        """Some rows of the batch."""
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.logits.device)
        return Forward(self.inputs[index], self.logits[index], self.features[index])

    def padded(self, rows: int) -> Forward:
        """As many ``rows`` as told: rows of zeros behind its own."""
        lack = rows - len(self)
        inputs, logits, features = (
            torch.cat([part, part.new_zeros(lack, *part.shape[1:])])
            for part in (self.inputs, self.logits, self.features)
        )
        return Forward(inputs, logits, features)

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """``compute()``, or what it gave the first time for this batch."""
        if key not in self.shared:
            self.shared[key] = compute()
        value: T = self.shared[key]
        return value

    @property
    def prediction(self) -> NDArray[np.int64]:
        """(batch,) the class of the largest logit."""
        return self.once("prediction", lambda: self.logits.argmax(1).cpu().numpy())

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(batch,) whether the model gave finite logits and features; one that divides may not."""

        def compute() -> NDArray[np.bool_]:
            # A NaN passes through both, and is under nothing; `isfinite` takes 20 times as long.
            largest = torch.maximum(self.logits.abs().amax(1), self.features.abs().amax(1))
            under: NDArray[np.bool_] = (largest < math.inf).cpu().numpy()
            return under

        return self.once("finite", compute)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(batch,) softmax probability of the prediction; 0 where not `finite`."""
        logits = self.logits.double().cpu().numpy()
        with np.errstate(invalid="ignore"):  # of rows that get 0
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        best = (1.0 / shifted.sum(axis=1)).astype(np.float32)
        return np.where(self.finite, best, np.float32(0))

    @property
    def embedding(self) -> NDArray[np.float64]:
        """(batch, features) the features, for computations outside torch."""
        return self.once("embedding", lambda: self.features.double().cpu().numpy())


class Network:
    """A classifier in evaluation mode, and where its features are.

    Forward passes have one batch size (``tile``), padded where needed: a row's figures then do not
    depend on the rows beside it, and a replay that cuts batches differently is bit-identical on one
    device. On a CPU the last pass of a batch may be smaller (``sizes``), where that was found to
    give the same bits.

    Parameters
    ----------
    module:
        Takes (batch, *shape) float32 in [0, 1] and gives (batch, classes) logits. It is changed in
        place: its device, its mode, and on a CPU, for large images, the order of its convolutions'
        weights in memory.
    input:
        Shape, dtype and range of one input on the wire.
    features:
        ``auto``: what goes into the last linear layer that runs; without one, what goes into the
        last layer with a weight of two or more axes, averaged over space; without one, the logits.
        Or the name of a submodule: what goes into it.
    device:
        ``auto`` (CUDA where there is one), or any torch device.

    Raises
    ------
    ConfigError
        If the module does not take such inputs or gives no logits, or has no such submodule.
    """

    def __init__(
        self,
        module: nn.Module,
        input: Input,  # noqa: A002 - the name of the configuration's table
        features: str = "auto",
        device: str = "auto",
    ) -> None:
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            self.device = torch.device(chosen)
            self.module = module.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # torch asserts that it has CUDA
            raise ConfigError(f"device {device!r} cannot be used: {error}") from error
        self.input = input
        self.tile = _tile(self.device, input)
        if self.device.type == "cpu" and math.prod(input.shape) >= SMALL_INPUT:
            # Convolutions then need no copies in another order: 4/5 of the time for MNIST's.
            convert_conv2d_weight_memory_format(self.module, torch.channels_last)
        self.sizes: tuple[int, ...] = (self.tile,)
        self._seen: list[tuple[int, Tensor]] = []
        for rank, head in self._heads(features):
            head.register_forward_pre_hook(self._keep(rank))
        self.classes, self.width = self._probe()
        if self.device.type == "cpu":
            self.sizes = alike(self._tried(), self.tile)

    @property
    def image(self) -> bool:
        """Whether inputs are images: (height, width) or (channels, height, width)."""
        shape = self.input.shape
        return len(shape) in {2, 3} and min(shape[-2:]) >= SMALLEST_IMAGE

    def scale(self, x: NDArray[Any]) -> Tensor:
        """Inputs in the wire dtype as float32 in [0, 1] on the device.

        Parameters
        ----------
        x:
            (batch, *shape), uint8 or float32; uint8 is sent to the device as it is.
        """
        low, high = self.input.range
        tensor = torch.from_numpy(np.ascontiguousarray(x)).to(self.device)
        scaled = torch.empty(tensor.shape, dtype=torch.float32, device=self.device)
        return scaled.copy_(tensor).sub_(low).div_(high - low)

    def forward(self, x: NDArray[Any]) -> Forward:
        """Run the model.

        Parameters
        ----------
        x:
            (batch, *shape) in the wire dtype, within the range; batch ≥ 1.
        """
        return self.from_scaled(self.scale(x))

    def from_scaled(self, x: Tensor) -> Forward:
        """Run the model on inputs that are already scaled, for detectors that change them.

        Parameters
        ----------
        x:
            (batch, *shape) float32 in [0, 1].
        """
        x = x.to(self.device)
        tiles = [self._run(x[part], size) for part, size in pieces(len(x), self.sizes)]
        logits = torch.cat([tile[0] for tile in tiles])
        return Forward(x, logits, torch.cat([tile[1] for tile in tiles]))

    def _run(self, part: Tensor, size: int) -> tuple[Tensor, Tensor]:
        rows = part.shape[0]
        # A new tensor: strides that a caller's array has by chance would choose another kernel.
        tile = torch.zeros((size, *part.shape[1:]), device=self.device)
        tile[:rows] = part
        self._seen.clear()
        with torch.inference_mode():
            logits = self.module(tile)
        best = max((rank for rank, _ in self._seen), default=None)
        found = [tensor for rank, tensor in self._seen if rank == best]
        features = found[-1] if found else logits
        self._seen.clear()
        if features.ndim > 2:
            features = features.flatten(2).mean(2)
        return logits[:rows].float(), features[:rows].float()

    def _heads(self, features: str) -> list[tuple[int, nn.Module]]:
        """Layers whose input may be the features; the highest rank that runs last wins."""
        named = dict(self.module.named_modules())
        if features != "auto":
            if features not in named:
                near = difflib.get_close_matches(features, named, 1, 0.0)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"features: the model has no submodule {features!r}{hint}")
            return [(1, named[features])]
        weights = ((module, getattr(module, "weight", None)) for module in named.values())
        return [
            (int(isinstance(module, nn.Linear)), module)
            for module, weight in weights
            if isinstance(weight, Tensor) and weight.ndim > 1
        ]

    def _keep(self, rank: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                self._seen.append((rank, args[0]))

        return hook

    def _probe(self) -> tuple[int, int]:
        """Run once on zeros, so that a model that does not fit fails here with words."""
        shape = (self.tile, *self.input.shape)
        try:
            logits, features = self._run(torch.zeros(shape, device=self.device), self.tile)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ConfigError(
                f"the model does not run on inputs of shape {list(self.input.shape)}; "
                f"correct input.shape or the architecture: {error}"
            ) from error
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ConfigError(
                f"the model gives {list(logits.shape)} for {self.tile} inputs; "
                "logits of shape [batch, classes] with two classes or more are needed"
            )
        return int(logits.shape[1]), int(features.shape[1])

    def _tried(self) -> Run:
        """What the model makes of a tile of random inputs, cut into passes of a size."""
        seeded = torch.Generator().manual_seed(0)
        x = torch.rand((self.tile, *self.input.shape), generator=seeded)

        def run(size: int) -> list[NDArray[Any]]:
            found = [self._run(part, size) for part in torch.split(x, size)]
            return [torch.cat(parts).numpy() for parts in zip(*found, strict=True)]

        return run


def _tile(device: torch.device, spec: Input) -> int:
    """Inputs in one pass: decided by the input's size alone, so that all workers decide alike."""
    if device.type == "cuda":
        return CUDA_TILE
    return 32 if math.prod(spec.shape) < SMALL_INPUT else 8
