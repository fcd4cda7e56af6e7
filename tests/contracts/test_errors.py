"""The tree of errors is the one that is drawn, and every error is in it."""

from __future__ import annotations

import importlib
import pkgutil
import re

import nnsec
import schemas
from nnsec import errors
from schemas.errors import NNSecError


def drawn() -> dict[str, str]:
    """Each error of the docstring with the one it stands under."""
    parents: dict[int, str] = {}
    found: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4}[│├└─ ]*)([A-Z]\w+)", line)
        if match is None:
            continue
        depth, name = len(match.group(1)) // 4, match.group(2)
        found[name] = parents.get(depth - 1, "")
        parents[depth] = name
    return found


def test_the_drawing_is_the_tree() -> None:
    """Each error that is drawn stands under the class that it derives from."""
    tree = drawn()
    assert tree.pop("NNSecError") == ""
    assert set(tree) | {"NNSecError"} == set(errors.__all__)
    for name, parent in tree.items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [parent], name


def test_the_test_sees_a_wrong_drawing() -> None:
    """The drawing is read down to its deepest level."""
    assert drawn()["Expired"] == "TrustError"
    assert len(drawn()) > 8


def everything(error: type[BaseException] = NNSecError) -> set[type[BaseException]]:
    return {error}.union(*(everything(one) for one in error.__subclasses__()))


def test_every_exception_of_ours_is_an_nnsec_error() -> None:
    """Contract and domain raise nothing of their own outside the tree; each says what it is."""
    strays = []
    for package in (schemas, nnsec):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                mine = isinstance(value, type) and value.__module__ == module.name
                if mine and issubclass(value, Exception) and not issubclass(value, NNSecError):
                    strays.append(f"{module.name}.{value.__name__}")
    assert strays == []
    assert [one.__name__ for one in everything() if not one.__doc__] == []
