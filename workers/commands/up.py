"""``nnsec up``: the services that are called embedded, and the monitor, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Console

from nnsec.addresses import shown
from nnsec.settings import Settings
from workers import embedded
from workers.commands.plain import plain, plain_lines
from workers.fleet import Ended, Fleet

ROLES = ("stream", "view", "remediation")
console = Console()


def up(
    context: typer.Context,
    trainer: Annotated[bool, typer.Option(help="Run the trainer too.")] = False,
) -> None:
    """Start broker and store where they are embedded, then stream, view and remediation."""
    settings: Settings = context.obj
    # Told to end while the services start, it must stop them as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = context.parent.params.get("config") if context.parent else None
    with ExitStack() as stack:
        resolved = embedded.resolve(settings, stack)
        console.print(f"Kafka    {resolved.kafka.bootstrap_servers}", highlight=False)
        console.print(f"Redis    {shown(resolved.redis.url)}", highlight=False)
        fleet = stack.enter_context(Fleet(resolved, config))
        for role in (*ROLES, "trainer") if trainer else ROLES:
            fleet.start(role)
        asyncio.run(_watch(fleet))


async def _watch(fleet: Fleet) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(_start(fleet))
    try:
        while not stop.is_set():
            if starting.done():
                starting.result()
            fleet.check()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
    except Ended as error:
        console.print(plain_lines(str(error), "red"))
        raise typer.Exit(1) from error
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        console.print("ending")


async def _start(fleet: Fleet) -> None:
    def told(role: str, state: str) -> None:
        console.print(plain(f"{role:<12} {state}"))

    # What is not ready says why, for as long as it takes: a model may still have to be released.
    await fleet.ready(timeout=float("inf"), told=told)
    console.print("ready; Ctrl-C ends it", highlight=False)
