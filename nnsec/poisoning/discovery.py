"""Finding the screens: every module of the package is looked through.

>>> "trigger" in names()
True
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from nnsec import poisoning
from nnsec.errors import ConfigError
from nnsec.poisoning.base import REASONS, Screen
from nnsec.poisoning.samples import Geometry

MAX_REASONS = 16
"""Bits of a summary's row."""


@cache
def found() -> dict[str, type[Screen]]:
    """Every concrete screen of this package by its reason; modules that begin with _ are left out.

    Raises
    ------
    ConfigError
        If two have one reason, or there are too many.
    """
    screens: dict[str, type[Screen]] = {}
    for info in sorted(pkgutil.iter_modules(poisoning.__path__), key=lambda info: info.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{poisoning.__name__}.{info.name}")
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, Screen)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
            ):
                if value.reason in screens:
                    raise ConfigError(f"two screens give the reason {value.reason!r}; rename one")
                screens[value.reason] = value
    if len(REASONS) + len(set(screens) - set(REASONS)) > MAX_REASONS:
        raise ConfigError(f"there are more than {MAX_REASONS} reasons; merge some screens")
    return screens


def names() -> tuple[str, ...]:
    """Reasons of all screens, sorted."""
    return tuple(sorted(found()))


def reasons() -> tuple[str, ...]:
    """All reasons in the order of their bits: the fixed ones, then those of added screens."""
    return (*REASONS, *(name for name in names() if name not in REASONS))


def make(name: str, geometry: Geometry) -> Screen:
    """A new screen, not fitted.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in found():
        raise ConfigError(f"there is no screen {name!r}; there are {', '.join(names())}")
    return found()[name](geometry)
