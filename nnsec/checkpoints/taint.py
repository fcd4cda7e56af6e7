"""Taint: which checkpoints learned from what was revoked, themselves or through an ancestor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from uuid import UUID

from nnsec.checkpoints.manifest import Learned, Manifest
from nnsec.checkpoints.provenance import SAMPLES, Position
from schemas.revocation import Revocation


class Revoked:
    """The topic ``training.revocations``, folded record by record; the last word counts.

    One that was said before (the same id) is said again by a worker that was cut off, and changes
    nothing: it may have been withdrawn meanwhile.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._positions: set[Position] = set()

    @property
    def positions(self) -> AbstractSet[Position]:
        """(log, partition, offset, row) of what is revoked now; changes with the next record."""
        return self._positions

    def apply(self, revocation: Revocation) -> None:
        """Take in one record, in time linear in its own positions."""
        if revocation.id in self._known:
            return
        self._known.add(revocation.id)
        positions = ((revocation.log, *position) for position in revocation.positions)
        if revocation.withdrawn:
            self._positions.difference_update(positions)
        else:
            self._positions.update(positions)


def revoked_positions(revocations: Iterable[Revocation]) -> frozenset[Position]:
    """Fold all of them as `Revoked` does, oldest first."""
    revoked = Revoked()
    for one in revocations:
        revoked.apply(one)
    return frozenset(revoked.positions)


def tainted(
    manifests: Mapping[int, Manifest],
    revoked: Collection[Position],
    digests: Mapping[int, str] | None = None,
) -> dict[int, str]:
    """Find the checkpoints of one model that must not serve.

    Parameters
    ----------
    manifests:
        Verified manifests by version.
    revoked:
        (log, partition, offset, row) of samples that must not be learned from.
    digests:
        The checkpoints' digests by version; if given, a parent must also be the very one named.

    Returns
    -------
    dict
        Why, by version. A version whose ancestors cannot all be seen is tainted as soon as
        anything is revoked: that it never saw poison cannot be shown.
    """
    by_partition = _by_partition(revoked)
    reasons: dict[int, str] = {}
    for version in sorted(manifests):
        reason = _own(manifests[version], by_partition)
        if not reason and revoked:
            reason = _inherited(version, manifests, reasons, digests)
        if reason:
            reasons[version] = reason
    return reasons


def newest_clean(
    manifests: Mapping[int, Manifest],
    revoked: Collection[Position],
    digests: Mapping[int, str] | None = None,
    *,
    exclude: Collection[int] = (),
) -> int | None:
    """The newest version that is not tainted and not excluded; None if there is none."""
    bad = tainted(manifests, revoked, digests)
    return max((v for v in manifests if v not in bad and v not in exclude), default=None)


ByPartition = Mapping[tuple[UUID, int], Collection[tuple[int, int]]]


def _by_partition(revoked: Iterable[Position]) -> ByPartition:
    found: dict[tuple[UUID, int], list[tuple[int, int]]] = {}
    for log, partition, offset, row in revoked:
        found.setdefault((log, partition), []).append((offset, row))
    return {key: sorted(positions) for key, positions in found.items()}


def _own(manifest: Manifest, revoked: ByPartition) -> str:
    """Weights, detectors and calibration alike: whatever was fitted on poison is not clean."""
    for what, parts in (
        ("learned from", manifest.learned),
        ("was fitted or calibrated on", manifest.reference_learned),
    ):
        hits: list[tuple[int, int, int]] = []
        for part in parts:
            if part.topic == SAMPLES:
                found = _hits(part, revoked.get((part.log, part.partition), ()))
                hits.extend((part.partition, *position) for position in found)
        if hits:
            partition, offset, row = hits[0]
            return (
                f"{what} {len(hits)} revoked samples, the first at "
                f"{SAMPLES}/{partition}/{offset}#{row}"
            )
    return ""


def _hits(part: Learned, revoked: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    starts = [first for first, _ in part.ranges]
    excluded = frozenset(part.exclusions)
    found = []
    for offset, row in revoked:
        index = bisect_right(starts, offset) - 1
        if index >= 0 and offset <= part.ranges[index][1] and (offset, row) not in excluded:
            found.append((offset, row))
    return found


def _inherited(
    version: int,
    manifests: Mapping[int, Manifest],
    reasons: Mapping[int, str],
    digests: Mapping[int, str] | None,
) -> str:
    parent = manifests[version].parent
    if parent is None:
        return ""
    if parent.version >= version:
        return f"names version {parent.version} as its parent, which is not older"
    if parent.version not in manifests:
        return f"its parent, version {parent.version}, cannot be verified, nor what it learned from"
    if digests is not None and digests.get(parent.version) != parent.digest:
        return f"its parent, version {parent.version}, is not the one that it was trained on from"
    if parent.version in reasons:
        return f"its parent, version {parent.version}, {reasons[parent.version]}"
    return ""
