"""The registry as remediation sees it: which checkpoints verify, and which pass the golden set."""

from __future__ import annotations

from typing import Protocol

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Survey, load, survey
from nnsec.errors import ConfigError, Unsafe
from nnsec.settings import Settings
from nnsec.trust import keys

MIN_ACCURACY = 0.5
"""On the golden set; a checkpoint under it is no better than chance and serves nobody."""


class Vault(Protocol):
    """Blocking; call it in a thread."""

    def survey(self, model: str) -> Survey:
        """Verify every version of a model."""
        ...

    def examine(self, model: str, version: int, digest: str) -> float:
        """Verify one again, load it, and score its golden set; returns the accuracy on it."""
        ...


class RegistryVault:
    """The vault over the configured registry.

    Parameters
    ----------
    settings:
        ``[registry]``, ``[models]`` and ``[trust] release_keys`` count.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry.url)
        self._keys = tuple(keys.load_public(path) for path in settings.trust.release_keys)

    def survey(self, model: str) -> Survey:
        """Verify every version of a model.

        Raises
        ------
        TransientError
            If the registry is away.
        """
        return survey(self._registry, model, release_keys=self._keys)

    def examine(self, model: str, version: int, digest: str) -> float:
        """Verify a checkpoint again, load the very bytes, and score its golden set.

        Returns
        -------
        Accuracy on the golden set, 0 to 1.

        Raises
        ------
        TrustError
            If it does not verify, or does not do on its golden set what it did when it was signed.
        ConfigError
            If the model is not configured or the checkpoint does not fit the configuration.
        """
        spec = self._settings.models.get(model)
        if spec is None:
            raise ConfigError(f"model {model!r} is not configured; add [models.{model}]")
        found = load(
            self._registry,
            model,
            version,
            release_keys=self._keys,
            spec=spec,
            expected_digest=digest,
        )
        agreed = found.check_golden()
        if not agreed.whole:
            raise Unsafe(
                f"{model}/{version} does not do what it did when it was signed: of {agreed.n} "
                f"golden inputs {agreed.predictions} predictions and {agreed.scores} scores agree"
            )
        if agreed.accuracy < MIN_ACCURACY:
            raise Unsafe(
                f"{model}/{version} has accuracy {agreed.accuracy:.3f} on its golden set of "
                f"{agreed.n}; under {MIN_ACCURACY} nothing is rolled out by itself"
            )
        return agreed.accuracy
