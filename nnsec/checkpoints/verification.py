"""Verification: from hostile bytes to a manifest that can be believed, before a tensor is built.

The order is fixed: names and limits, signature, manifest, folder, digest, floor, expiry, sizes, the
digests of the other files, tensors. From a registry only the signature and the manifest are read
before the sizes are known to be those that were signed: what anybody may put there costs no more.
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

HEAD = (SIGNATURE, MANIFEST)
"""What is read first: it says what the other files must be."""
UNSIZED = 256 * 1024 * 1024
"""Bytes from which a file without a signed size is hashed before it is read into memory."""


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
    sizes = {name: len(content) for name, content in files.items()}
    _limits(sizes)
    signed = signing.verify(files, release_keys)
    manifest = _judged(
        signed, files, sizes, model, version, now=now, floor=floor, expected_digest=expected_digest
    )
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
    now = now or datetime.now(UTC)
    sizes = registry.sizes(model, version, LIMITS)
    head = registry.fetch(model, version, {name: sizes[name] for name in HEAD if name in sizes})
    signed = signing.verify(head, release_keys, names=sizes)
    manifest = _judged(
        signed, head, sizes, model, version, now=now, floor=floor, expected_digest=expected_digest
    )
    rest = {name: size for name, size in sizes.items() if name not in HEAD}
    for name in rest.keys() - manifest.sizes.keys():
        if rest[name] < UNSIZED:
            continue
        digest, rest[name] = registry.digest(model, version, name, rest[name])
        if digest != signed.files[name]:
            raise DigestMismatch(f"{name} differs from what was signed")
    # All of it is checked again, and only these bytes are used: files may be swapped meanwhile.
    return verify_files(
        head | registry.fetch(model, version, rest),
        model,
        version,
        release_keys=release_keys,
        now=now,
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


def _judged(
    signed: signing.Signed,
    head: Mapping[str, bytes],
    sizes: Mapping[str, int],
    model: str,
    version: int,
    *,
    now: datetime,
    floor: int,
    expected_digest: str | None,
) -> Manifest:
    """The manifest, if what was signed is what is wanted here; ``head`` holds its bytes."""
    for name in LIMITS:
        if name not in sizes:
            raise DigestMismatch(f"{name} is missing, and was not signed either")
    manifest = Manifest.decode(head[MANIFEST])
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
    for name, size in manifest.sizes.items():
        if (found := sizes.get(name)) != size:
            raise DigestMismatch(
                f"{name} differs from what was signed: it has {found} bytes, not {size}"
            )
    return manifest


def _limits(sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        signing.check_name(name)
        if name not in LIMITS:
            raise Unsafe(f"{name} is not a file of a checkpoint; remove it")
        if size > LIMITS[name]:
            raise Unsafe(f"{name} has {size} bytes; at most {LIMITS[name]} are read")
