"""The taxonomy: threats, their families, and their ids in public catalogues."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

Threat = Literal[
    "evasion", "query_attack",
    "extraction", "membership_inference",
    "data_poisoning", "label_flip", "backdoor", "model_poisoning",
    "drift",
    "malformed_input", "resource_abuse",
    "supply_chain", "integrity",
]  # fmt: skip
Family = Literal["evasion", "privacy", "poisoning", "drift", "abuse", "trust"]

THREATS: tuple[Threat, ...] = get_args(Threat)
FAMILIES: tuple[Family, ...] = get_args(Family)


@cache
def taxonomy() -> dict[str, Any]:
    """The data file, by threat: family, ATLAS, OWASP and NIST ids."""
    text = files("schemas").joinpath("data/threats-v1.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def family(threat: Threat) -> Family:
    """The family that a threat's incidents are opened under."""
    result: Family = taxonomy()["threats"][threat]["family"]
    return result


def atlas(threat: Threat) -> tuple[str, ...]:
    """The MITRE ATLAS technique ids of a threat."""
    return tuple(taxonomy()["threats"][threat]["atlas"])
