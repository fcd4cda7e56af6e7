"""The figures of docs/scaling.md can be taken anew, and do not grow with what is unbounded."""

from __future__ import annotations

import pytest

from tests.load import costs


@pytest.mark.full  # times
def test_batch_records_share_the_cost_of_decoding() -> None:
    """64 inputs in a record cost a fraction of 64 records (measured: a sixtieth)."""
    assert costs.decoding(64) < costs.decoding(1) / 8


def test_a_summary_holds_rows_and_not_names() -> None:
    """At most 64 bytes an input, however many clients sent them."""
    assert costs.evidence(500)[1] < 64


@pytest.mark.full  # times
async def test_an_alert_costs_the_same_in_a_large_storm() -> None:
    """Four times as many alerts take no more than twice as long each (measured: the same)."""
    assert await costs.correlating(2000) < 2 * await costs.correlating(500) + 50


@pytest.mark.parametrize("partitions", [12, 120])
def test_a_status_stays_small(partitions: int) -> None:
    """It is read by every process."""
    assert costs.status(partitions) < 250 + 12 * partitions
