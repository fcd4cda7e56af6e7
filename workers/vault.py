"""The registry as remediation sees it: which checkpoints verify, and which pass the golden set.

What builds networks is imported when it is first needed: that takes seconds, which a process that
only quarantines is spared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nnsec.adapters.registry import Registry
from nnsec.errors import ConfigError, Unsafe
from nnsec.settings import Settings
from nnsec.trust import keys
from schemas.revocation import Revocation

MIN_ACCURACY = 0.5
"""On the golden set; a checkpoint under it is no better than chance and serves nobody."""


@dataclass(frozen=True, slots=True)
class Stock:
    """All versions of a model, judged.

    Parameters
    ----------
    digests:
        Of those that verify, by version.
    refused:
        Why the others do not.
    tainted:
        Why some of those that verify must not serve.
    """

    digests: Mapping[int, str]
    refused: Mapping[int, str]
    tainted: Mapping[int, str]


class Vault(Protocol):
    """Blocking; call it in a thread."""

    def survey(self, model: str, revocations: Sequence[Revocation]) -> Stock:
        """Verify every version of a model, and find those that learned from what was revoked."""
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

    def survey(self, model: str, revocations: Sequence[Revocation]) -> Stock:
        """Verify every version of a model, and find those that learned from what was revoked.

        Parameters
        ----------
        revocations:
            Oldest first.

        Raises
        ------
        TransientError
            If the registry is away.
        """
        from nnsec.checkpoints import revoked_positions, survey, tainted

        found = survey(self._registry, model, release_keys=self._keys)
        bad = tainted(found.manifests, revoked_positions(revocations), found.digests)
        refused = {version: str(error) for version, error in found.refused.items()}
        return Stock(found.digests, refused, bad)

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
        TransientError
            If the registry is away.
        """
        from nnsec.checkpoints import load

        spec = self._settings.models.get(model)
        if spec is None:
            raise ConfigError(f"model {model!r} is not configured; add [models.{model}]")
        found = load(
            self._registry, model, version, release_keys=self._keys, spec=spec,
            expected_digest=digest,
        )  # fmt: skip
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


def warm() -> None:
    """Import what takes long, so that the first rollback need not; call it in a thread.

    From then on torch uses one thread: a golden set is small, and beside busy stream workers more
    threads wait for each other (measured: 2.2 s instead of 0.06 s).
    """
    import torch

    import nnsec.checkpoints  # noqa: F401 - loading it is the point
    from nnsec import detectors
    from nnsec.poisoning import discovery

    torch.set_num_threads(1)
    detectors.found()
    discovery.found()
