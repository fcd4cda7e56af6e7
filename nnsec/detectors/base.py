"""What a detector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import Unsafe
from nnsec.network import Forward, Network


class Detector(ABC):
    """Scores how unlike clean inputs an input is.

    A subclass in a module of this package is found by itself. It keeps what it learns in
    attributes, arrays all, and names them in ``fitted``: they travel in the checkpoint.
    """

    name: ClassVar[str]
    """Unique; lower case, no comma."""
    needs_images: ClassVar[bool] = False
    """Whether vector models are to do without it."""
    costly: ClassVar[bool] = False
    """Whether it looks only at inputs that the others leave in doubt."""
    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that `fit` sets."""

    @abstractmethod
    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """Learn from clean inputs only.

        Parameters
        ----------
        reference:
            Clean inputs and what the model makes of them.
        labels:
            (batch,) true classes.
        network:
            The model, for detectors that run it again.
        seed:
            Of all that is drawn.
        """

    @abstractmethod
    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """How suspicious each input is.

        Returns
        -------
        (batch,), larger is more suspicious. A row's score does not depend on the other rows.
        """

    def state(self) -> dict[str, NDArray[Any]]:
        """What was learned, as arrays."""
        return {name: np.asarray(getattr(self, name)) for name in self.fitted}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If an array is missing, empty, or not of finite numbers.
        """
        for name in self.fitted:
            array = state.get(name)
            if array is None:
                raise Unsafe(f"the state of detector {self.name!r} lacks {name!r}")
            if array.dtype.kind not in "iuf" or not array.size or not np.isfinite(array).all():
                raise Unsafe(f"{name!r} of detector {self.name!r} is not of finite numbers")
            setattr(self, name, array)


class Stateless(Detector):
    """A detector with nothing to learn: the fusion learns what is usual of its scores."""

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """Nothing to learn."""
