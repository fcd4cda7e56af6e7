"""Loading: a checkpoint is verified first, and built from the very bytes that were verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor, nn

from nnsec import models
from nnsec.adapters.registry import Registry
from nnsec.checkpoints import golden, tensors
from nnsec.checkpoints.golden import Agreement, Golden
from nnsec.checkpoints.manifest import DETECTORS, GOLDEN, SCREENS, WEIGHTS, Manifest
from nnsec.checkpoints.verification import Verified, verify
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Network
from nnsec.poisoning import ScreenSuite
from nnsec.settings import ModelTable
from nnsec.suite import Suite
from nnsec.trust.keys import PublicKey

SHOWN = 3
"""Names of tensors that a message lists of each kind."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A verified checkpoint, ready to score.

    Parameters
    ----------
    digest:
        SHA-256 of the signed payload, in hex.
    """

    manifest: Manifest
    digest: str
    network: Network
    suite: Suite
    screens: ScreenSuite
    golden: Golden

    def check_golden(self) -> Agreement:
        """Score the golden set; costs one batch."""
        return golden.agreement(self.suite, self.golden)


def load(
    registry: Registry,
    model: str,
    version: int,
    *,
    release_keys: Sequence[PublicKey],
    spec: ModelTable,
    now: datetime | None = None,
    floor: int = 0,
    expected_digest: str | None = None,
) -> Checkpoint:
    """Fetch, verify and build a checkpoint.

    Parameters
    ----------
    release_keys:
        Keys that may sign checkpoints.
    spec:
        The model's configuration; it must be the one that the checkpoint was made for.
    now:
        Reference time of the expiry; None for the clock.
    floor:
        The lowest version accepted.
    expected_digest:
        What a signed statement calls for; None for any.

    Raises
    ------
    TrustError
        If it does not verify (see `verify_files`); nothing was built.
    ConfigError
        If it does not fit the configuration; the message says what to change.
    TransientError
        If the registry is away.
    """
    found = verify(
        registry, model, version, release_keys=release_keys, now=now, floor=floor,
        expected_digest=expected_digest,
    )  # fmt: skip
    return build(found, spec)


def build(verified: Verified, spec: ModelTable) -> Checkpoint:
    """Build what was verified.

    Raises
    ------
    ConfigError
        If it does not fit the configuration.
    Unsafe
        If its fitted state is none.
    """
    manifest, files = verified.manifest, verified.files
    _same(manifest, spec)
    module = with_weights(spec, tensors.load_tensors(WEIGHTS, files[WEIGHTS]), manifest)
    network = Network(module, spec.input, spec.features, spec.device)
    suite = Suite.restore(tensors.load_arrays(DETECTORS, files[DETECTORS]), network)
    screens = ScreenSuite.from_state(network, tensors.load_arrays(SCREENS, files[SCREENS]))
    answers = Golden.restore(tensors.load_arrays(GOLDEN, files[GOLDEN]))
    if answers.x.shape[1:] != tuple(spec.input.shape):
        raise Unsafe(
            f"{GOLDEN} has inputs of shape {list(answers.x.shape[1:])}, and the model takes "
            f"{list(spec.input.shape)}"
        )
    return Checkpoint(manifest, verified.digest, network, suite, screens, answers)


def with_weights(
    spec: ModelTable, weights: Mapping[str, Tensor], manifest: Manifest | None = None
) -> nn.Module:
    """Make the network and give it its weights.

    Parameters
    ----------
    weights:
        By name, as in the module's ``state_dict``.
    manifest:
        What names the architecture; None while a checkpoint is made.

    Raises
    ------
    ConfigError
        If the architecture cannot be made, or the weights are not its own.
    """
    named = manifest.architecture if manifest else spec.architecture
    module = models.build(named, spec.architecture)
    wanted = module.state_dict()
    problems = [
        _listed("lacks", [name for name in wanted if name not in weights]),
        _listed("has besides", [name for name in weights if name not in wanted]),
        _listed(
            "has other shapes for",
            [
                f"{name} ({list(weights[name].shape)}, not {list(wanted[name].shape)})"
                for name in wanted
                if name in weights and weights[name].shape != wanted[name].shape
            ],
        ),
    ]
    if any(problems):
        raise ConfigError(
            f"the weights do not fit {spec.architecture}: the file "
            f"{'; it '.join(filter(None, problems))}. Name the architecture that they were trained "
            "with in [models.NAME] architecture, or give its own weights"
        )
    with torch.no_grad():
        module.load_state_dict(dict(weights), strict=True)
    return module


def _listed(what: str, names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {', '.join(names[:SHOWN])}{rest}" if names else ""


def _same(manifest: Manifest, spec: ModelTable) -> None:
    """Refuse a configuration other than that the checkpoint was made for."""
    pairs = {
        "architecture": (manifest.architecture, spec.architecture),
        "input.shape": (manifest.input.shape, spec.input.shape),
        "input.dtype": (manifest.input.dtype, spec.input.dtype),
        "input.range": (manifest.input.range, spec.input.range),
        "features": (manifest.features, spec.features),
        "classes": (manifest.classes, spec.classes or manifest.classes),
    }
    for key, (made, configured) in pairs.items():
        if made != configured:
            raise ConfigError(
                f"checkpoint {manifest.model}/{manifest.version} was made for {key} = {made!r}, "
                f"and [models.{manifest.model}] says {configured!r}; change the configuration, "
                "or make a checkpoint for it"
            )
