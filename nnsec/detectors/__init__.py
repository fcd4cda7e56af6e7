"""Detectors, one a module; a new module here is found by itself.

>>> "energy" in names()
True
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cache

from nnsec.detectors.base import Detector
from nnsec.errors import ConfigError


@cache
def found() -> dict[str, type[Detector]]:
    """Every concrete detector of this package by name; modules that begin with ``_`` are left out.

    Raises
    ------
    ConfigError
        If two have one name.
    """
    detectors: dict[str, type[Detector]] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, Detector)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
            ):
                if value.name in detectors:
                    raise ConfigError(f"two detectors are named {value.name!r}; rename one")
                detectors[value.name] = value
    return detectors


def names() -> tuple[str, ...]:
    """Names of all detectors, sorted."""
    return tuple(sorted(found()))


def make(name: str) -> Detector:
    """A new detector, not fitted.

    Raises
    ------
    ConfigError
        If there is none of that name; it names the nearest.
    """
    if name not in found():
        near = difflib.get_close_matches(name, names(), 1, 0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no detector {name!r}{hint}")
    return found()[name]()


__all__ = ["Detector", "found", "make", "names"]
