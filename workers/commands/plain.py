"""Text of others, made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Replace what is no text: ids and reasons are the users' words, and may hold escapes.

    >>> printable("a\x1b[31m b")
    'a�[31m b'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
