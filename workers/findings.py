"""What a check-up finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    advice:
        What to do; empty where all is well.
    """

    about: str
    status: Status
    text: str
    advice: str = ""
