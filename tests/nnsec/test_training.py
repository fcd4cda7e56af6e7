from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnsec import datasets
from nnsec.errors import ConfigError
from nnsec.models import small_cnn
from nnsec.settings import Input
from nnsec.training import Adversarial, evaluate, fit, replayed

DIGITS = datasets.load("digits")
BLOBS = Input(shape=(4,), dtype="float32", range=(-4.0, 4.0))


def _blobs(n: int = 65) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    return np.clip(rng.normal(y[:, None] * 2.0 - 1, 0.7, (n, 4)), -4, 4).astype(np.float32), y


def _dropped() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
    )


def test_adversarial_training_makes_digits_robust() -> None:
    """Trained on mixed batches, a network stands attacks that fool one trained on clean images."""
    order = np.random.default_rng(0).permutation(len(DIGITS.x))
    x, y = DIGITS.x[order[:600]], DIGITS.y[order[:600]]
    held, labels = DIGITS.x[order[600:800]], DIGITS.y[order[600:800]]
    found = []
    for against in (None, Adversarial(0.1, 3)):
        torch.manual_seed(0)
        module = fit(
            small_cnn(), x, y, input=DIGITS.input, epochs=8, batch=64, lr=3e-3, seed=0,
            adversarial=against,
        )  # fmt: skip
        assert not module.training
        found.append(evaluate(module, held, labels, input=DIGITS.input, epsilon=0.1, steps=10))
    clean, robust = found
    assert min(clean.clean, robust.clean) > 0.85
    assert robust.robust > clean.robust + 0.05
    assert robust.n == 200


def test_what_is_replayed_is_of_all_classes_alike() -> None:
    """Each in turn, a rare one as long as it has rows; over again where more are asked for."""
    y = np.repeat([0, 1, 2], [50, 40, 3])
    assert np.bincount(y[replayed(y, 9, seed=0)]).tolist() == [3, 3, 3]
    assert np.bincount(y[replayed(y, 33, seed=0)]).tolist() == [15, 15, 3]
    chosen = replayed(y, 186, seed=0)
    assert np.bincount(chosen).tolist() == [2] * 93
    assert (chosen != replayed(y, 186, seed=1)).any()


def test_training_is_a_function_of_its_arguments() -> None:
    """One seed gives one network, dropout and all; torch's own generator is left as it was."""
    x, y = _blobs()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(7)
        module = _dropped()
        torch.set_rng_state(before)
        fit(
            module, x, y, input=BLOBS, epochs=2, batch=64, lr=1e-2, seed=seed,
            adversarial=Adversarial(0.05, 2),
        )  # fmt: skip
        weights.append(torch.cat([value.flatten() for value in module.state_dict().values()]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_progress_is_told_after_each_step_and_can_end_it() -> None:
    """65 inputs in parts of at most 64 are two nearly equal steps an epoch; none of one input."""
    x, y = _blobs()
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, loss: float) -> None:
        assert loss > 0
        told.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(_dropped(), x, y, input=BLOBS, epochs=2, batch=64, lr=1e-2, seed=0, progress=progress)
    assert told == [(1, 4), (2, 4), (3, 4)]


def test_evaluate_keeps_the_mode_and_takes_modules_without_weights() -> None:
    """Measuring changes nothing, and a model may have no parameters."""
    x, y = _blobs()
    module = _dropped().train()
    found = evaluate(module, x, y, input=BLOBS, steps=2)
    assert module.training
    assert 0 <= found.robust <= found.clean <= 1
    assert evaluate(nn.Flatten(), x, y, input=BLOBS, steps=1).n == len(x)


def test_what_cannot_be_trained_on_is_a_clear_error() -> None:
    """No data, labels that do not fit, inputs of another shape, a rate that diverges."""
    x, y = _blobs()
    common: dict[str, Any] = {"input": BLOBS, "epochs": 2, "batch": 64, "seed": 0}
    with pytest.raises(ConfigError, match="one label for each"):
        fit(_dropped(), x[:0], y[:0], lr=0.1, **common)
    with pytest.raises(ConfigError, match="one label for each"):
        fit(_dropped(), x, y[:3], lr=0.1, **common)
    with pytest.raises(ConfigError, match="does not take"):
        fit(_dropped(), x[:, :3], y, lr=0.1, **common)
    with pytest.raises(ConfigError, match="does not take"):
        fit(_dropped(), x, y + 5, lr=0.1, **common)
    with pytest.raises(ConfigError, match="infinity"):
        fit(_dropped(), x, y, lr=1e30, **common)
    with pytest.raises(ConfigError, match="no input"):
        evaluate(_dropped(), x[:0], y[:0], input=BLOBS)
