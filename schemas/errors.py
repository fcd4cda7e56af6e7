"""The root of every error that the project raises, and the one that decoding raises."""

from __future__ import annotations


class NNSecError(Exception):
    """The root of all errors of nnsec; a message says what was wrong, where, and what to do."""


class SchemaError(NNSecError):
    """What was read breaks the wire contract.

    Parameters
    ----------
    message:
        What is wrong, in words for the sender.
    field:
        JSON path, header name, or ``value``.
    error_class:
        A published dead-letter class: ``SchemaError``, ``UnknownModel``, ``TooLarge``, …
    """

    def __init__(
        self, message: str, *, field: str = "value", error_class: str = "SchemaError"
    ) -> None:
        super().__init__(message)
        self.field = field
        self.error_class = error_class
