"""The canary says what it waits for; with the README it is tried on a whole monitor."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from nnsec.adapters.declaration import declare
from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Input, Settings, parse
from nnsec.trust import keys
from workers import canary

SPEC = {"architecture": "a:b", "input": {"shape": [1, 4, 4], "range": [0, 16]}}


def configured(settings: Settings, *trusted: str) -> Settings:
    tables = {"models": {"canary": SPEC}, "trust": {"operator_keys": list(trusted)}}
    return parse(settings.model_dump() | tables)


async def test_a_monitor_that_is_silent_is_told(settings: Settings, tmp_path: Path) -> None:
    """Where no stream runs there is no incident: the message names it and the next step."""
    keys.write_new(tmp_path / "operator")
    given = configured(settings, f"{tmp_path}/operator.pub")
    await declare(given, now=datetime.now(UTC))
    with pytest.raises(
        TransientError, match="waited 4 s for an incident of canary; `nnsec doctor`"
    ):
        await canary.play(given, "canary", tmp_path / "operator", 4.0)


async def test_a_broker_that_is_away_is_told(settings: Settings, tmp_path: Path) -> None:
    """Before there is a broker, that is what it waits for."""
    keys.write_new(tmp_path / "operator")
    given = configured(settings, f"{tmp_path}/operator.pub").model_dump()
    given["kafka"]["bootstrap_servers"] = "127.0.0.1:1"
    with pytest.raises(TransientError, match="for Kafka to answer"):
        await canary.play(parse(given), "canary", tmp_path / "operator", 0.3)


async def test_a_key_that_is_not_trusted_is_refused(settings: Settings, tmp_path: Path) -> None:
    """Nothing is sent if the incident could not be closed."""
    keys.write_new(tmp_path / "operator")
    with pytest.raises(ConfigError, match="operator_keys"):
        await canary.play(configured(settings), "canary", tmp_path / "operator", 5.0)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_noise_is_in_range_and_never_repeats(dtype: str) -> None:
    """Values are of the model's type and range, and no two rows are equal."""
    spec = Input.model_validate({"shape": (3, 5), "dtype": dtype, "range": (2, 9)})
    x = np.concatenate([canary.noise(spec, 32, seed=seed) for seed in (0, 32)])
    assert x.dtype == np.dtype(dtype)
    assert x.shape == (64, 3, 5)
    assert 2 <= x.min() < 3 < 8 < x.max() <= 9
    assert len({row.tobytes() for row in x}) == 64
