from __future__ import annotations

import pytest
import torch

from nnsec.errors import ConfigError
from nnsec.models import build, mnist_cnn, small_cnn


def test_networks_take_their_shapes() -> None:
    """Each network maps a batch of its images to ten logits."""
    assert small_cnn()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert mnist_cnn()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_build_makes_the_allowed_architecture() -> None:
    """The configured name is imported and called."""
    name = "nnsec.models:small_cnn"
    assert isinstance(build(name, name), torch.nn.Module)


@pytest.mark.parametrize(
    ("architecture", "allowed", "word"),
    [
        ("nnsec.models:mnist_cnn", "nnsec.models:small_cnn", "allows"),
        ("os", "os", "package.module:function"),
        ("nnsec.models:none", "nnsec.models:none", "cannot be imported"),
        ("nowhere.at_all:f", "nowhere.at_all:f", "cannot be imported"),
        ("os:getcwd", "os:getcwd", "no torch module"),
    ],
)
def test_build_says_what_to_change(architecture: str, allowed: str, word: str) -> None:
    """A wrong name is a ConfigError that says what to change."""
    with pytest.raises(ConfigError, match=word):
        build(architecture, allowed)
