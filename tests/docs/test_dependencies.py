"""What the project depends on is pinned, explained, and used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("schemas", "nnsec", "streams", "workers")


def declared(*extras: str) -> set[str]:
    names = set(PROJECT["dependencies"])
    return names.union(*(PROJECT["optional-dependencies"][extra] for extra in extras))


BEHIND = {"cramjam"}
"""What another library imports if it is there, and is needed."""


def imported() -> set[str]:
    """Names of the distributions that the source imports, by any module."""
    found: set[str] = set()
    for folder in OURS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    found.add(node.module.partition(".")[0])
    third_party = found - set(OURS) - sys.stdlib_module_names
    known = packages_distributions()
    return {name.lower().replace("_", "-") for one in third_party for name in known[one]}


def test_every_dependency_is_pinned_exactly() -> None:
    """constraints.txt names each direct dependency once, and nothing else."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([a-z0-9.-]+)==[0-9][0-9a-z.]*", pin) for pin in pins]
    assert all(matches), pins
    names = [match.group(1) for match in matches if match]
    assert names == sorted(set(names))
    assert set(names) == declared(*PROJECT["optional-dependencies"])


def test_every_dependency_is_explained() -> None:
    """docs/dependencies.md says of each why it is here."""
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
    )
    assert [name for name, why in rows if len(why) < 10] == []
    assert sorted(name for name, _ in rows) == sorted(declared(*PROJECT["optional-dependencies"]))


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    """Nothing is imported that others happen to bring, and nothing declared for nothing."""
    used = imported() | BEHIND
    assert used - declared("embedded") == set()
    assert declared() - used == set()
