"""The table of docs/incidents.md: how much a flood delays the accusation of an attacker."""

from __future__ import annotations

from tests.load import flood


def test_a_pure_attacker_is_found_four_inputs_later_at_most() -> None:
    """After nothing, and after 1 to 1,000 times what a day expects; the table says the same."""
    assert flood.lines(shares=(1.0,)) == ["100%: 5, 6, 7, 8, 9"]
