"""Text of others, made fit for a terminal and a log: ids and reasons may hold its orders."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 132
"""Characters that a line of a table has room for, whatever it is printed on."""


def printable(text: str) -> str:
    r"""Replace what is no text, line breaks too: what may hold escapes becomes one line.

    >>> printable("a\x1b[31m b")
    'a�[31m b'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain(text: str, style: str = "") -> Text:
    """One line for a console or a table, in which nothing is taken for markup."""
    return Text(printable(text), style)


def plain_lines(text: str, style: str = "") -> Text:
    """As `plain`, with the line breaks kept: for messages of our own that quote others."""
    return Text(_lines(text), style)


def show_tables(*tables: Table) -> None:
    """Print tables whole: ids are copied and lines are searched, so none is cut to a terminal.

    A narrower terminal breaks their lines.
    """
    Console(width=max(Console().width, WIDTH)).print(*tables)


def start_log() -> None:
    """Write the log to standard error, from INFO upwards: one line a record, then its traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class PlainFormatter(logging.Formatter):
    """Shows subjects and reasons, which others chose, as text that orders no terminal about.

    Nor does any of it forge a record: a line break in a message is replaced too.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging names it so
        """The line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The lines of its traceback."""
        return _lines(super().formatException(ei))


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
