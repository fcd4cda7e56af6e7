from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnsec.errors import ConfigError
from nnsec.splits import PARTS, Splits


@settings(max_examples=40, deadline=None)
@given(n=st.integers(80, 400), classes=st.integers(1, 5), seed=st.integers(0, 9))
def test_parts_are_disjoint_and_complete(n: int, classes: int, seed: int) -> None:
    """Each row is in one part, and the parts have about their shares."""
    y = np.random.default_rng(seed).integers(0, classes, n)
    splits = Splits.stratified(y, seed=seed, shares=(0.3, 0.2, 0.3, 0.2))
    rows = np.concatenate([getattr(splits, name) for name in PARTS])
    assert np.array_equal(np.sort(rows), np.arange(n))
    for name, share in zip(PARTS, (0.3, 0.2, 0.3, 0.2), strict=True):
        assert abs(len(getattr(splits, name)) - share * n) <= 3


def test_every_class_is_in_every_part() -> None:
    """A class of 20 among 1,000 is dealt out in the same shares."""
    y = np.repeat([0, 1], [980, 20])
    splits = Splits.stratified(y, seed=0)
    for name, wanted in zip(PARTS[:3], (7, 5, 8), strict=True):
        assert abs(int((y[getattr(splits, name)] == 1).sum()) - wanted) <= 2
    assert not len(splits.test)


def test_a_seed_gives_one_split() -> None:
    """The same seed the same rows, another seed others."""
    y = np.arange(200) % 4
    one, same, other = (Splits.stratified(y, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.calibrate, same.calibrate)
    assert not np.array_equal(one.calibrate, other.calibrate)


def test_groups_stay_together_and_calibrate_once() -> None:
    """Changed copies of one image never help to judge each other."""
    groups = np.arange(300) % 100
    y = groups % 5
    splits = Splits.stratified(y, seed=0, shares=(0.3, 0.2, 0.3, 0.2), groups=groups)
    owners = [set(groups[getattr(splits, name)].tolist()) for name in PARTS]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 100
    assert len(splits.calibrate) == len(owners[2])
    assert len(splits.test) == len(owners[3])
    assert len(splits.train) == 3 * len(owners[0])


def test_too_few_rows_are_named() -> None:
    """A part that would be too small says which, and shares must be shares."""
    with pytest.raises(ConfigError, match="to fit"):
        Splits.stratified(np.zeros(20, np.int64), seed=0)
    for shares in ((0.5, 0.5, 0.5, 0.0), (1.2, -0.2, 0.0, 0.0)):
        with pytest.raises(ConfigError, match="sum to 1"):
            Splits.stratified(np.zeros(100, np.int64), seed=0, shares=shares)
