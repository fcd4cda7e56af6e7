from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnsec.wording import TAGS
from schemas import threats
from schemas.threats import FAMILIES, THREATS, Threat


def test_the_data_file_and_the_code_name_the_same_threats() -> None:
    """Neither knows a threat that the other does not."""
    assert set(threats.taxonomy()["threats"]) == set(THREATS)


@pytest.mark.parametrize("threat", THREATS)
def test_every_threat_has_a_family_and_ids_of_the_right_form(threat: Threat) -> None:
    """Ids look as their catalogues write them."""
    assert threats.family(threat) in FAMILIES
    assert all(re.fullmatch(r"AML\.T\d{4}(\.\d{3})?", one) for one in threats.atlas(threat))
    row = threats.taxonomy()["threats"][threat]
    assert all(re.fullmatch(r"ML\d\d:2023", one) for one in row["owasp"])
    assert all(re.fullmatch(r"NISTAML\.\d{2,3}", one) for one in row["nist"])


def test_every_family_has_a_threat() -> None:
    """No family is empty."""
    assert {threats.family(threat) for threat in THREATS} == set(FAMILIES)


def test_the_docs_tell_apart_what_is_raised_and_what_is_reserved() -> None:
    """The page has every threat once, under its family, and what alerts are made of as raised."""
    page = (Path(__file__).parents[2] / "docs" / "incidents.md").read_text("utf-8")
    rows = re.findall(rf"^\| ({'|'.join(FAMILIES)}) \|(.*)\|.*\|(.*)\|$", page, re.MULTILINE)
    columns = [
        {name: family for family, *cells in rows for name in re.findall(r"`(\w+)`", cells[which])}
        for which in (0, 1)
    ]
    raised, reserved = columns
    assert set(raised) == {*TAGS, "evasion", "drift", "integrity"}
    assert raised | reserved == {threat: threats.family(threat) for threat in THREATS}
    assert not raised.keys() & reserved.keys()
