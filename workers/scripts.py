"""The scripts that change the view in Redis, and what they answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import chain

import redis.asyncio as redis
from prometheus_client import Counter

from nnsec.errors import TransientError
from workers import store
from workers.changes import Change
from workers.store import Keys

GONE, ELSEWHERE = -1, -2
FORGOTTEN = Counter(
    "nnsec_view_forgotten_sources", "Sources whose counts made room for those of newer ones"
)
_OFFSET = re.compile(r"-1|0|[1-9][0-9]{0,18}")


class Lost(TransientError):  # noqa: N818 - the name says what it is
    """The view is not where this worker left it."""


class Refused(store.Spoilt):
    """Redis refuses a change: a key holds what the view did not write, or the change is wrong.

    Parameters
    ----------
    change:
        The first that was refused.
    """

    def __init__(self, change: Change, reason: str) -> None:
        super().__init__(reason)
        self.change = change


class Scripts:
    """clear.lua and view.lua.

    Parameters
    ----------
    client:
        Of Redis.
    names:
        Of its keys.
    """

    def __init__(self, client: redis.Redis, names: Keys) -> None:
        self._client = client
        self._names = names
        self._change, self._clear = (
            client.register_script(files("workers").joinpath(name).read_text("utf-8"))
            for name in ("view.lua", "clear.lua")
        )

    async def stored(self) -> dict[str, str]:
        """What the view says of itself: its places, and of which logs they are."""
        try:
            with store.converted():
                return await store.read_hash(self._client, self._names.positions)
        except store.Spoilt:
            return {}

    async def clear(self, fields: Mapping[str, str | int]) -> None:
        """Empty the view at once, and have it say of itself what is given."""
        patterns = self._names.owned()
        with store.converted():
            await self._clear(
                keys=[self._names.positions],
                args=[len(patterns), *patterns, *chain.from_iterable(fields.items())],
            )

    async def apply(self, made: Sequence[Change], believed: Mapping[str, int]) -> dict[str, int]:
        """Make changes of one partition in order, in one round trip.

        Parameters
        ----------
        believed:
            Place to the offset that was applied last.

        Returns
        -------
        Place to the offset that is applied last now, of the places that moved.

        Raises
        ------
        Lost
            If Redis is elsewhere; nothing of what is out of place was written.
        Refused
            Naming the change; what came after it may have been made.
        """
        last: dict[str, int] = {}
        pipe = self._client.pipeline(transaction=False)
        for change in made:
            before = last.get(change.place, believed.get(change.place, -1))
            await self._change(
                keys=[self._names.positions, *change.keys],
                args=[change.operation, change.place, before, change.offset, *change.values],
                client=pipe,
            )
            last[change.place] = change.offset
        with store.converted():
            answers = await pipe.execute(raise_on_error=False)
        for change, answer in zip(made, answers, strict=True):
            if isinstance(answer, Exception):
                try:
                    with store.converted():
                        raise answer
                except store.Spoilt as error:
                    raise Refused(change, str(error)) from error
        if any(answer in {GONE, ELSEWHERE} for answer in answers):
            raise Lost("the view was emptied or set back")
        FORGOTTEN.inc(sum(a for a, c in zip(answers, made, strict=True) if c.operation == "count"))
        return last


def offsets(stored: Mapping[str, str]) -> dict[str, int]:
    """The places in what is stored; what the scripts would not write counts as missing."""
    return {place: int(at) for place, at in stored.items() if _OFFSET.fullmatch(at)}
