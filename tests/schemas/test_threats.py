from __future__ import annotations

import re

import pytest

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
