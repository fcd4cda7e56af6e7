"""The fault suite's released model and its ledger."""

from __future__ import annotations

from tests.fault.conftest import apache, released, shown

__all__ = ["apache", "released", "shown"]
