"""The ledger of what runs show."""

from __future__ import annotations

from tests.fault.conftest import shown

__all__ = ["shown"]
