"""Remediation actions: one module each, found by discovery, inert until the policy names them.

An action is planned (what exactly would be done: no effect, may say that it cannot or need not be),
then judged by the guards, then applied. `apply` may be cut off anywhere and called again with the
same figures: it looks at what is there and does the rest.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from nnsec.errors import NNSecError
from nnsec.guards import Request
from schemas.action import Action
from workers.site import Site
from workers.vault import Vault


class Impossible(NNSecError):  # noqa: N818 - the name says what it is
    """The action cannot be done, and trying again would not help."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What exactly an action would do.

    Parameters
    ----------
    what:
        In words.
    figures:
        All that `Remedy.apply` needs to do the same again after a kill.
    needed:
        False if it is as it should be already.
    """

    what: str
    figures: Mapping[str, Any]
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What was done: one line, and figures to add."""

    what: str
    figures: Mapping[str, Any]


class Remedy(ABC):
    """One kind of action."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset()
    """Kinds of subjects for which a policy may ask for it; none: on command only."""

    def __init__(self, site: Site, vault: Vault) -> None:
        self.site = site
        self.vault = vault

    @abstractmethod
    async def plan(self, action: Action) -> Plan:
        """Find out what is to be done, without doing it.

        Raises
        ------
        Impossible
            If nothing can be done.
        """

    def request(self, action: Action, plan: Plan) -> Request:
        """What the guards judge."""
        del plan
        return Request(action.action, action.model, action.subject.id, action.automatic)

    @abstractmethod
    async def apply(self, action: Action) -> Result:
        """Do it, or the rest of it; the plan's figures are in ``action.figures``.

        Raises
        ------
        NNSecError
            If it failed; a ``TransientError`` has it called again.
        """


@cache
def discover() -> Mapping[str, type[Remedy]]:
    """All actions by name, from the modules of this package."""
    found: dict[str, type[Remedy]] = {}
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f"{__name__}.{module.name}")
        for _, one in inspect.getmembers(content, inspect.isclass):
            if issubclass(one, Remedy) and not inspect.isabstract(one):
                found[one.name] = one
    return found
