"""The registry as people look at it: every version verified, and judged by what was revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nnsec.adapters import kafka
from nnsec.adapters.registry import Registry
from nnsec.errors import ConfigError, TrustError
from nnsec.settings import Settings
from nnsec.trust.keys import PublicKey
from schemas.base import format_time
from schemas.revocation import Revocation

if TYPE_CHECKING:  # what builds networks takes seconds to import
    from nnsec.checkpoints import Survey

BROKER_SECONDS = 5.0
"""How long a list waits for the broker before it shows what is known without it."""


def verified(
    registry: Registry, model: str, version: int, trusted: Sequence[PublicKey]
) -> dict[str, Any]:
    """Whether one checkpoint verifies, by which key, or why not."""
    from nnsec.checkpoints import verify as check

    row: dict[str, Any] = {"model": model, "version": version, "verified": False}
    try:
        found = check(registry, model, version, release_keys=trusted)
    except TrustError as error:
        return row | {"digest": "", "key": "", "error": f"{type(error).__name__}: {error}"}
    return row | {"verified": True, "digest": found.digest, "key": found.key_id, "error": ""}


async def read_revocations(settings: Settings) -> list[Revocation]:
    """Everything that was revoked or released, oldest first; waits for a broker that is away."""
    kafka.outage.listen()
    await kafka.declare(settings, now=datetime.now(UTC))
    records = kafka.read_to_end(settings, ("training.revocations",))
    return [Revocation.decode(record.value) async for record in records]


async def known_revocations(settings: Settings) -> list[Revocation] | None:
    """What was revoked; None where no broker is configured or none answers."""
    try:
        async with asyncio.timeout(BROKER_SECONDS):
            return await read_revocations(settings)
    except (ConfigError, TimeoutError):
        return None


def listed(
    settings: Settings, trusted: Sequence[PublicKey], model: str,
    revocations: Sequence[Revocation] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """All checkpoints of a model, one row each, in the order of their versions.

    Parameters
    ----------
    trusted:
        Release keys.
    revocations:
        Oldest first; None if nobody knows.
    """
    from nnsec.checkpoints import revoked_positions, survey
    from nnsec.checkpoints import tainted as judge

    found = survey(Registry(settings.registry.url), model, release_keys=trusted)
    known = revocations is not None
    bad = judge(found.manifests, revoked_positions(revocations or ()), found.digests)
    return [
        _row(found, model, version, bad.get(version, "") if known else None)
        for version in sorted({*found.manifests, *found.refused})
    ]


def _row(found: Survey, model: str, version: int, taint: str | None) -> dict[str, Any]:
    """One line of the list; of what does not verify nothing is believed but its number."""
    row: dict[str, Any] = {"model": model, "version": version, "verified": False}
    manifest = found.manifests.get(version)
    if manifest is None:
        return row | {"error": str(found.refused[version]), "tainted": None}
    return row | {
        "verified": True, "error": "", "tainted": taint, "digest": found.digests[version],
        "created": format_time(manifest.created),
        "parent": manifest.parent.version if manifest.parent else None,
        "rows": manifest.rows, "clean_accuracy": manifest.metrics.clean_accuracy,
        "robust_accuracy": manifest.metrics.robust_accuracy,
    }  # fmt: skip
