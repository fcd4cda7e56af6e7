"""Which inputs a subject has sent before: the newest pairs of subject and fingerprint."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray


class Repeats:
    """Remembers pairs over all subjects of one model and one kind; the longest unseen goes first.

    A repeat is known for as long as fewer than ``capacity`` other pairs have come since the pair
    was last seen. That is exact: with places found by a hash, two pairs that share one would put
    each other out in every cycle of a client's inputs, and count for ever.

    Parameters
    ----------
    capacity:
        Pairs remembered; at most 200 bytes each, and 8 in a snapshot.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pairs: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def seen(self, key: bytes, fingerprint: int) -> bool:
        """Whether a subject's input is remembered; it is from now on.

        Parameters
        ----------
        key:
            (16 bytes) of the subject.
        fingerprint:
            64 bits.
        """
        digest = hashlib.blake2b(
            key + fingerprint.to_bytes(8, "little"), digest_size=8, usedforsecurity=False
        ).digest()
        pair = int.from_bytes(digest, "little") or 1
        if pair in self._pairs:
            self._pairs.move_to_end(pair)
            return True
        self._pairs[pair] = None
        if len(self._pairs) > self.capacity:
            self._pairs.popitem(last=False)
        return False

    def state(self) -> NDArray[np.uint64]:
        """(capacity,) the pairs, the longest unseen first, behind a 0 for each free place."""
        state = np.zeros(self.capacity, np.uint64)
        count = len(self._pairs)
        state[self.capacity - count :] = np.fromiter(self._pairs, np.uint64, count)
        return state

    def restore(self, state: NDArray[np.uint64]) -> None:
        """Take up what `state` gave, or the table of an earlier nnsec.

        That one held each pair at a place found by its hash, 0 where there was none: its pairs are
        all taken up, in the order of their places, as it did not keep that of their coming.
        """
        newest = state[state != 0][-self.capacity :]
        self._pairs = OrderedDict.fromkeys(newest.tolist())


__all__ = ["Repeats"]
