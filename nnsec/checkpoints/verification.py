"""Verification: from hostile bytes to a manifest that can be believed, before a tensor is built.

The order is fixed: names, signature, digests, manifest, folder, digest, floor, expiry, tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from nnsec.adapters.registry import SIGNATURE, Registry
from nnsec.checkpoints import signing, tensors
from nnsec.checkpoints.manifest import (
    DETECTORS,
    GOLDEN,
    LIMITS,
    MANIFEST,
    SCREENS,
    WEIGHTS,
    Manifest,
)
from nnsec.errors import DigestMismatch, Expired, RollbackRefused, TrustError, Unsafe
from nnsec.trust.keys import PublicKey


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint whose every byte is signed.

    Parameters
    ----------
    digest:
        SHA-256 of the signed payload, in hex.
    key_id:
        Which release key signed it.
    files:
        The bytes that were verified, by file name, without the signature.
    """

    digest: str
    key_id: str
    manifest: Manifest
    files: Mapping[str, bytes]


def verify_files(
    files: Mapping[str, bytes],
    model: str,
    version: int,
    *,
    release_keys: Sequence[PublicKey],
    now: datetime,
    floor: int = 0,
    expected_digest: str | None = None,
) -> Verified:
    """Check the bytes of a checkpoint.

    Parameters
    ----------
    files:
        Content by file name.
    model, version:
        Under what they were found.
    release_keys:
        Keys that may sign checkpoints; one is enough.
    now:
        Reference time of the expiry.
    floor:
        The lowest version accepted.
    expected_digest:
        What a signed statement calls for; None for any.

    Raises
    ------
    BadSignature
        No signature of a trusted key.
    DigestMismatch
        A file is missing or differs from what was signed, or another checkpoint was expected.
    Unsafe
        A file too many, no safetensors, numbers that are not finite, or signed for another name.
    RollbackRefused
        A version under the floor.
    Expired
        Past the end that its manifest gives.
    """
    _limits(files)
    signed = signing.verify(files, release_keys)
    for name in LIMITS:
        if name not in files:
            raise DigestMismatch(f"{name} is missing, and was not signed either")
    manifest = Manifest.decode(files[MANIFEST])
    if (manifest.model, manifest.version) != (model, version):
        raise Unsafe(
            f"{MANIFEST} is of {manifest.model}/{manifest.version}, but lies under "
            f"{model}/{version}: a folder was renamed or copied"
        )
    if expected_digest is not None and signed.digest != expected_digest:
        raise DigestMismatch(
            f"{SIGNATURE} of {model}/{version} has digest {signed.digest[:16]}…; "
            f"{expected_digest[:16]}… was expected"
        )
    if version < floor:
        raise RollbackRefused(
            f"{model}/{version} is older than version {floor}, the lowest allowed"
        )
    if manifest.expires is not None and now >= manifest.expires:
        raise Expired(f"{model}/{version} expired at {manifest.expires.isoformat()}")
    for name in (WEIGHTS, DETECTORS, SCREENS, GOLDEN):
        tensors.check(name, files[name])
    kept = {name: content for name, content in files.items() if name != SIGNATURE}
    return Verified(signed.digest, signed.key_id, manifest, MappingProxyType(kept))


def verify(
    registry: Registry,
    model: str,
    version: int,
    *,
    release_keys: Sequence[PublicKey],
    now: datetime | None = None,
    floor: int = 0,
    expected_digest: str | None = None,
) -> Verified:
    """Fetch a checkpoint and check it as `verify_files` does.

    Parameters
    ----------
    now:
        Reference time; None for the clock.

    Raises
    ------
    TrustError
        As `verify_files`.
    TransientError
        If the registry is away.
    """
    return verify_files(
        registry.fetch(model, version, LIMITS),
        model,
        version,
        release_keys=release_keys,
        now=now or datetime.now(UTC),
        floor=floor,
        expected_digest=expected_digest,
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """All versions of a model, checked.

    Parameters
    ----------
    manifests:
        Those that verify.
    digests:
        Theirs.
    refused:
        Why the others do not.
    """

    manifests: Mapping[int, Manifest]
    digests: Mapping[int, str]
    refused: Mapping[int, TrustError]


def survey(
    registry: Registry,
    model: str,
    *,
    release_keys: Sequence[PublicKey],
    now: datetime | None = None,
) -> Survey:
    """Check every version of a model that has a signature.

    Raises
    ------
    TransientError
        If the registry is away.
    """
    manifests: dict[int, Manifest] = {}
    digests: dict[int, str] = {}
    refused: dict[int, TrustError] = {}
    for version in registry.list(model):
        try:
            found = verify(registry, model, version, release_keys=release_keys, now=now)
        except TrustError as error:
            refused[version] = error
        else:
            manifests[version], digests[version] = found.manifest, found.digest
    return Survey(MappingProxyType(manifests), MappingProxyType(digests), MappingProxyType(refused))


def _limits(files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        signing.check_name(name)
        if name not in LIMITS:
            raise Unsafe(f"{name} is not a file of a checkpoint; remove it")
        if len(content) > LIMITS[name]:
            raise Unsafe(f"{name} has {len(content)} bytes; at most {LIMITS[name]} are read")
