"""What is done before the curtain: the first checkpoint, and the script of what is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Created, create
from nnsec.network import Network
from nnsec.settings import Settings
from nnsec.trust import keys
from workers.demo import poison
from workers.demo.director import Script
from workers.demo.material import Material
from workers.releases import release

HONEST = 8_000
"""Inputs of honest clients: more than the longest play sends."""
ATTACKS = 450
"""Inputs of the attacker; not all of them succeed."""
Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """The first checkpoint, signed but not released, and the script."""

    created: Created
    script: Script

    async def release(self, settings: Settings) -> None:
        """Sign and publish that the first checkpoint serves."""
        await release(
            settings, model=self.script.model, version=self.created.version,
            digest=self.created.digest, key=keys.load_private(settings.remediation.release_key),
            reason="the demo begins",
        )  # fmt: skip


def rehearse(settings: Settings, material: Material, seed: int, progress: Progress) -> Rehearsal:
    """Train the network, make a checkpoint of it, and write the script; takes seconds.

    Parameters
    ----------
    progress:
        Called with what is being done; what it raises ends it.
    """
    module = material.trained(
        lambda done, steps, loss: progress(f"training: step {done} of {steps}, loss {loss:.3f}")
    )
    progress("fitting detectors and screens, calibrating")
    name = material.name
    created = create(
        Registry(settings.registry.url), model=name, spec=settings.models[name],
        weights=module.state_dict(), x=material.reference_x, y=material.reference_y,
        key=keys.load_private(settings.remediation.release_key), now=datetime.now(UTC), seed=seed,
    )  # fmt: skip
    progress("computing the attacks")
    return Rehearsal(created, write_script(material, created.checkpoint.network, seed))


def write_script(material: Material, network: Network, seed: int) -> Script:
    """Draw everything that will be sent."""
    return Script(
        model=material.name,
        input=material.input,
        honest=material.honest(HONEST, seed=1),
        attack=material.attack(network, ATTACKS, seed=2),
        drifting=lambda amounts, number: material.drifting(amounts, 1000 + number),
        quiet=poison.lessons(material, seed),
        loud=poison.loud(material, seed),
        later=poison.later(material, seed),
    )
