"""Addresses as they may be shown: what is printed may end in a ticket, or on a topic."""

from __future__ import annotations

import re

_SECRET = re.compile(r"(?<=://).*@|\?.*", re.DOTALL)


def shown(url: str) -> str:
    """An address without user, password and query.

    A password may hold a slash that was not encoded, so all up to the last ``@`` is left out.

    >>> shown("rediss://user:pass/word@r:6380/2?timeout=1"), shown("./registry")
    ('rediss://r:6380/2', './registry')
    """
    return _SECRET.sub("", url)


def secrets(url: str) -> tuple[str, ...]:
    """What `shown` leaves out.

    >>> secrets("sftp://user:word@host/folder?key=1")
    ('user:word@', '?key=1')
    """
    return tuple(_SECRET.findall(url))
