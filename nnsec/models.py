"""Architectures by registered name: a checkpoint names one, it never carries code."""

from __future__ import annotations

import importlib

from torch import nn

from nnsec.errors import ConfigError


def small_cnn() -> nn.Module:
    """A network for one-channel 8 by 8 images of 10 classes: (N, 1, 8, 8) in [0, 1] to (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mnist_cnn() -> nn.Module:
    """A network for one-channel 28 by 28 images of 10 classes: (N, 1, 28, 28) to (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def build(architecture: str, allowed: str) -> nn.Module:
    """Make the network that a checkpoint names, if the configuration allows that name.

    Parameters
    ----------
    architecture:
        ``package.module:function``; the function takes nothing and returns a module.
    allowed:
        The exact name in ``[models.NAME] architecture``.

    Raises
    ------
    ConfigError
        If the name is another than the configured one, cannot be imported, or makes no module.
    """
    if architecture != allowed:
        raise ConfigError(
            f"the checkpoint was made for architecture {architecture!r}, and the configuration "
            f"allows {allowed!r}; change one of the two"
        )
    name, colon, function = allowed.partition(":")
    if not colon or not name or not function:
        raise ConfigError(f"architecture {allowed!r}: write it as package.module:function")
    try:
        factory = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"architecture {allowed!r} cannot be imported: {error}; "
            "install its package in the worker's environment, or correct the name"
        ) from error
    except Exception as error:
        # The user's module runs when it is imported, so it may raise anything.
        raise ConfigError(
            f"importing {name!r} for architecture {allowed!r} failed: {error!r}; "
            "correct that module"
        ) from error
    try:
        module = factory()
    except Exception as error:
        raise ConfigError(
            f"architecture {allowed!r} made an error: {error!r}; it must be a "
            "function that takes nothing and returns a torch module"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"architecture {allowed!r} made a {type(module).__name__}, no torch module"
        )
    return module
