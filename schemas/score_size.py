"""How large a score can become, known before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import SchemaError
from schemas.inference import Request

_AROUND = 2048
"""Bytes of the batch, of our own headers, and of the JSON around texts and figures, at most."""
_ESCAPED = 12
"""Bytes of a character in JSON at most: two escapes of six."""
_FIGURE = {"json": 15, "binary": 4}
"""Bytes of one figure at most; in JSON nine digits, an exponent or zeros, and a comma."""
_OTHERS = {"json": 14, "binary": 17}
"""Bytes of a row's class (65,535 is the largest, as in summaries) and of its verdict, at most."""
_COLUMNS = 3
"""Figures of a row beside those of the detectors."""


def largest_score(request: Request, detectors: Sequence[str]) -> int:
    """Upper bound of the bytes of a batch that holds the score of this request alone.

    Parameters
    ----------
    detectors:
        The columns of ``p_values``.
    """
    per_row = (_COLUMNS + len(detectors)) * _FIGURE[request.encoding] + _OTHERS[request.encoding]
    texts = 2 * len(request.id) + len(request.client) + len(request.model)  # the id is the key too
    names = sum(map(len, detectors)) + len(detectors)
    trace = sum(len(name) + len(content) for name, content in request.trace)
    return _AROUND + texts * _ESCAPED + names + trace + per_row * len(request.x)


def check_score_fits(request: Request, detectors: Sequence[str], limit: int) -> None:
    """Refuse a request whose score may be larger than its topic takes.

    Parameters
    ----------
    detectors:
        As in `largest_score`.
    limit:
        Most bytes of a batch on ``scores``.

    Raises
    ------
    SchemaError
        Of class ``TooLarge``.
    """
    needed = largest_score(request, detectors)
    if needed > limit:
        raise SchemaError(
            f"the score of {len(request.x)} inputs may take {needed} bytes, and scores takes "
            f"{limit}; send fewer in one record, or in the binary encoding",
            field="inputs[0].shape",
            error_class="TooLarge",
        )
