"""Asking processes of this machine whether they are ready, by the files that they leave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import aiohttp

READY = "ready"
SILENT = "does not answer yet"
_OK = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process serves its probes, and the file that says so."""

    role: str
    pid: int
    address: str
    file: Path


def place(file: Path) -> Place | None:
    """Read one file; None if it is not there or is something else."""
    try:
        found = json.loads(file.read_text("utf-8"))
        return Place(str(found["role"]), int(found["pid"]), str(found["address"]), file)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def places(folder: Path) -> list[Place]:
    """Every process that said where it serves, by role."""
    return [found for file in sorted(folder.glob("*-*.json")) if (found := place(file))]


async def state(session: aiohttp.ClientSession, address: str) -> str:
    """``ready``, or what the process waits for, or that it does not answer."""
    try:
        async with session.get(f"http://{address}/readyz") as answer:
            text = (await answer.text()).strip()
    except (aiohttp.ClientError, TimeoutError):
        return SILENT
    return READY if answer.status == _OK else text.replace("\n", "; ")


async def metrics(session: aiohttp.ClientSession, address: str) -> str:
    """What the process counts, in the text format of Prometheus; empty if it does not answer."""
    try:
        async with session.get(f"http://{address}/metrics") as answer:
            return await answer.text() if answer.status == _OK else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""
