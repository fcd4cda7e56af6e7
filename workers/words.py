"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "record"), counted(0, "record"), counted(2500, "version")
    ('1 record', '0 records', '2,500 versions')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
