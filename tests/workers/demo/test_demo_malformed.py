"""The demo's malformed records are refused for the reason that they were made for."""

from __future__ import annotations

import pytest

from nnsec.settings import Input, Limits
from schemas.errors import SchemaError
from schemas.inference import Expected, decode_request
from workers.demo.malformed import Malformed, malformed

DIGITS = Input(shape=(1, 8, 8), dtype="uint8", range=(0, 16))
KINDS = malformed("digits", DIGITS)


def test_there_are_ten_kinds() -> None:
    """Each with a name of its own."""
    assert len({one.name for one in KINDS}) == 10


@pytest.mark.parametrize("one", KINDS, ids=lambda one: one.name)
def test_each_is_refused_with_its_field(one: Malformed) -> None:
    """The dead letter will name the field that is wrong."""
    expected = {"digits": Expected("digits", (1, 8, 8), "uint8", 0, 16)}
    with pytest.raises(SchemaError) as refused:
        decode_request(
            None, one.value, one.headers, partition=0, offset=0, models=expected, limits=Limits(),
            default_model="",
        )  # fmt: skip
    assert refused.value.field == one.field
