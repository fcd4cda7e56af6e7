"""``/livez``, ``/readyz`` and ``/metrics`` of every process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from nnsec.errors import ConfigError
from nnsec.settings import Settings

RUN_FOLDER = Path(".nnsec/run")

logger = logging.getLogger(__name__)


class Probes:
    """A small HTTP server; an asynchronous context manager.

    Parameters
    ----------
    role:
        Of the process: ``stream``, ``view``, …; names the file that holds the address.
    problems:
        What keeps the process from being ready, in words; empty when it is.
    folder:
        Where ``<role>-<pid>.json`` is written, and removed at the end.
    registry:
        Of the metrics that are shown.

    Raises
    ------
    ConfigError
        On entering, if ``[http] listen`` is no address that can be had, or the folder cannot be
        written to.
    """

    def __init__(
        self,
        settings: Settings,
        role: str,
        problems: Callable[[], Sequence[str]],
        *,
        folder: Path = RUN_FOLDER,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._listen = settings.http.listen
        self._role = role
        self._problems = problems
        self._file = folder / f"{role}-{os.getpid()}.json"
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self.address = ""
        """``host:port`` once it listens."""

    async def __aenter__(self) -> Self:
        host, _, port = self._listen.rpartition(":")
        host = host.strip("[]")
        if not host:  # the library would take that for all interfaces
            raise ConfigError(
                f"[http] listen = {self._listen!r} names no host; write host:port, "
                "with 0.0.0.0 for all interfaces"
            )
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._live), web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )  # fmt: skip
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, int(port)).start()
            name, number = self._runner.addresses[0][:2]
            self.address = f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
        except (OSError, ValueError, OverflowError) as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"[http] listen = {self._listen!r} cannot be used: {error}; "
                "write host:port, with port 0 for any free one"
            ) from error
        try:
            self._announce()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"{self._file.absolute()} cannot be written: {error.strerror}; "
                "run it in a folder where it may write"
            ) from error
        logger.info("%s serves /livez, /readyz and /metrics on %s", self._role, self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.unlink(missing_ok=True)
        if self._runner is not None:
            await self._runner.cleanup()

    def _announce(self) -> None:
        """Write the address where other programs find it, whole or not at all."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        said = {"role": self._role, "pid": os.getpid(), "address": self.address}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(said) + "\n", "utf-8")
        part.replace(self._file)

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        problems = self._problems()
        if problems:
            return web.Response(status=503, text="".join(f"{line}\n" for line in problems))
        return web.Response(text="ready\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
