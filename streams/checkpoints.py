"""Checkpoints in memory: verified once, built from the verified bytes, shared by all agents."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Checkpoint, load
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.suite import Scored
from nnsec.trust import keys

if TYPE_CHECKING:
    from nnsec.drift import Reference
    from streams.device import Device

LOW_CONFIDENCE = (0.03, 0.1)
"""Quantiles of the reference's confidence that drift watches."""
SPARE = 2
"""Checkpoints of a model kept beside those that may serve: summaries lag behind a swap."""


class Checkpoints:
    """A cache by (model, version, digest).

    Safe to use from several threads; each checkpoint is loaded once, while others may be used.

    Parameters
    ----------
    settings:
        `[registry]`, `[models]` and `[trust] release_keys` count.
    device:
        The process that scores; without one this process does.
    """

    def __init__(self, settings: Settings, device: Device | None = None) -> None:
        self._device = device
        self._settings = settings
        self._registry = Registry(settings.registry.url)
        self._keys = tuple(keys.load_public(path) for path in settings.trust.release_keys)
        self._guard = threading.Lock()
        self._loading: dict[tuple[str, int], threading.Lock] = {}
        self._found: OrderedDict[tuple[str, int, str], Checkpoint] = OrderedDict()
        self._keep: dict[str, AbstractSet[tuple[int, str]]] = {}
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        """The one thread that runs models or waits for the device: the event loop stays free."""

    def get(self, model: str, version: int, digest: str | None = None) -> Checkpoint:
        """A loaded checkpoint; takes seconds the first time.

        Parameters
        ----------
        model:
            One of the configured models.
        version:
            In the registry, from 1.
        digest:
            What a signed statement calls for; None where only the release key's signature counts.

        Raises
        ------
        ConfigError
            If the model is not configured, or the checkpoint does not fit its configuration.
        TrustError
            If it does not verify.
        TransientError
            If the registry is away.
        """
        found = self._find(model, version, digest)
        if found is not None:
            return found
        with self._guard:
            lock = self._loading.setdefault((model, version), threading.Lock())
        with lock:
            found = self._find(model, version, digest)
            if found is None:
                found = self._load(model, version, digest)
        return found

    def prepare(self, model: str, version: int, digest: str) -> None:
        """Load a checkpoint here and where inputs are scored, at the same time.

        Raises
        ------
        NNSecError
            As `get`.
        """
        if self._device is None:
            self.get(model, version, digest)
            return
        with ThreadPoolExecutor(1) as aside:
            keep = {name: frozenset(some) for name, some in self._keep.items()}
            there = aside.submit(self._device.load, model, version, digest, keep)
            self.get(model, version, digest)
            there.result()

    def score(self, model: str, version: int, digest: str, x: NDArray[Any]) -> Scored:
        """Score a batch with a checkpoint; for the device's thread.

        Parameters
        ----------
        x:
            (batch, *shape) in the wire dtype.

        Raises
        ------
        NNSecError
            As `get` and `streams.device.Device.score`; without a device, whatever a model raises.
        """
        if self._device is None:
            return self.get(model, version, digest).suite.score(x)
        return self._device.score(model, version, digest, x)

    def calibration(self, model: str, version: int) -> Reference:
        """What a checkpoint's calibration knows of honest data, for evidence and drift.

        Raises
        ------
        NNSecError
            As `get`.
        """
        return reference(self.get(model, version))

    def retain(self, model: str, keep: AbstractSet[tuple[int, str]]) -> None:
        """Name the (version, digest) that must stay; of the others only the newest few do."""
        with self._guard:
            self._keep[model] = keep
            self._evict(model)

    def close(self) -> None:
        """Have the device's thread end after what it has in hand; nobody waits for that."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _find(self, model: str, version: int, digest: str | None) -> Checkpoint | None:
        with self._guard:
            for key in reversed(self._found):
                if key[:2] == (model, version) and digest in (None, key[2]):
                    self._found.move_to_end(key)
                    return self._found[key]
        return None

    def _load(self, model: str, version: int, digest: str | None) -> Checkpoint:
        spec = self._settings.models.get(model)
        if spec is None:
            raise ConfigError(f"model {model!r} is not configured; add [models.{model}]")
        checkpoint = load(
            self._registry, model, version, release_keys=self._keys, spec=spec,
            expected_digest=digest,
        )  # fmt: skip
        with self._guard:
            self._found[model, version, checkpoint.digest] = checkpoint
            self._evict(model)
        return checkpoint

    def _evict(self, model: str) -> None:
        keep = self._keep.get(model, frozenset())
        spare = [key for key in self._found if key[0] == model and key[1:] not in keep]
        for key in spare[: max(0, len(spare) - SPARE)]:
            del self._found[key]


def reference(checkpoint: Checkpoint) -> Reference:
    """Collect what a checkpoint knows of honest data."""
    from nnsec.drift import Reference  # loads River, which a process that only scores is spared

    manifest, calibration = checkpoint.manifest, checkpoint.suite.calibration
    return Reference(
        tiers=(calibration.levels,),
        screen=checkpoint.screens.levels,
        alpha=calibration.alpha,
        classes=checkpoint.network.classes,
        n=manifest.drift.n,
        class_rates=manifest.drift.class_rates,
        confidence=tuple(
            (level, quantile)
            for level, quantile in manifest.drift.confidence
            if level in LOW_CONFIDENCE
        ),
        error_rate=1.0 - manifest.metrics.clean_accuracy,
        error_n=manifest.metrics.n,
    )
