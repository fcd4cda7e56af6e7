"""Whatever is sent is decoded to what a second decoder gives, or refused with a field."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest

from nnsec.settings import Limits
from schemas.errors import SchemaError
from schemas.inference import Expected, Request, decode_request
from tests.badinput import naive
from tests.badinput.mutations import FAULTS, Case, cases

MODELS = {
    "digits": Expected("digits", (1, 2, 2), "uint8", 0, 16),
    "floats": Expected("floats", (3,), "float32", -1, 1),
}
LIMITS = Limits()


def ours(case: Case) -> Any:
    """What the decoder says: a request, a response passed over, or the error."""
    try:
        return decode_request(
            case.key, case.value, case.headers, partition=2, offset=7, models=MODELS,
            limits=LIMITS, default_model=case.default, identity_header=case.identity,
        )  # fmt: skip
    except SchemaError as error:
        return error


def theirs(case: Case) -> Any:
    """What the second decoder says."""
    try:
        return naive.decode(
            case.key, case.value, case.headers, position="2/7", default=case.default,
            identity=case.identity,
        )  # fmt: skip
    except naive.Refused as refused:
        return refused


def agree(case: Case) -> str:
    """Hold both against each other; what became of the record."""
    found, expected = ours(case), theirs(case)
    if isinstance(expected, naive.Refused):
        assert isinstance(found, SchemaError), (case, found)
        assert found.field, case
        assert str(found), case
        if case.fields is not None:
            assert found.field in case.fields, (case, found.field, found)
        return "refused"
    if expected is None:
        assert not isinstance(found, SchemaError | Request), (case, found)
        return "skipped"
    assert isinstance(found, Request), (case, found, getattr(found, "field", ""))
    assert case.fields is None, (case, "is no fault")
    same = naive.Read(
        found.id, found.model, found.client, found.encoding, list(found.x.shape),
        found.x.ravel().tolist(), found.time, list(found.trace),
    )  # fmt: skip
    assert same == expected, case
    return "decoded"


def run(seed: int, count: int) -> tuple[collections.Counter[str], set[str]]:
    """All cases of a seed; how many of each outcome, and the faults met."""
    outcomes: collections.Counter[str] = collections.Counter()
    names = set()
    for case in cases(seed, count):
        outcomes[agree(case)] += 1
        names.add(case.name)
    return outcomes, names


def test_ten_thousand_mutations() -> None:
    """Each fault is met, and names the field that is to blame."""
    outcomes, names = run(1, 10_000)
    assert names >= {name for name, *_ in FAULTS}
    assert outcomes["decoded"] > 1000
    assert outcomes["refused"] > 5000


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_million_mutations(shown: Callable[..., None], seed: int) -> None:
    """In ten runs of a hundred thousand."""
    outcomes, _ = run(seed, 100_000)
    assert outcomes["decoded"] > 10_000
    assert outcomes["refused"] > 50_000
    shown(17, "none", seed, records=100_000, crashes=0, **outcomes)
