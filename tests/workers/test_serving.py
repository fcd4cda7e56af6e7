"""The serving hook: a real HTTP server and real commands, good and bad."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from nnsec.errors import ConfigError
from nnsec.settings import Serving, Settings
from tests.workers.stage import Stage, configured
from workers.serving import CONTENT_TYPE, MAX_ANSWER, HookFailed, deliver

DIGEST = "ab" * 32
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/hook", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/hook"))


async def told(hook: str, timeout: float = 5.0, epoch: int = 3) -> str:  # noqa: ASYNC109
    return await deliver(
        Serving(hook=hook, timeout=timeout), b"envelope",
        model="digits", epoch=epoch, version=1, digest=DIGEST,
    )  # fmt: skip


@pytest.mark.parametrize("form", ['{"digest": "%s"}', '"%s"', "%s\n", "loading\n%s"])
async def test_a_server_confirms(form: str) -> None:
    """It gets the signed envelope and the facts, and answers with the digest in any form."""
    got: list[web.Request] = []
    bodies: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        got.append(request)
        bodies.append(await request.read())
        return web.Response(text=form % DIGEST)

    async with serving(answer) as url:
        assert await told(url) == DIGEST
    assert bodies == [b"envelope"]
    assert got[0].headers["content-type"] == CONTENT_TYPE
    facts = {name: got[0].headers[f"nnsec-{name}"] for name in ("model", "epoch", "version")}
    assert facts == {"model": "digits", "epoch": "3", "version": "1"}


@pytest.mark.parametrize("hook", ["http://user:s3cr3t/word@h/x", "http://u:s3cr3t@h:1x/y"])
async def test_a_hook_that_fails_is_not_shown(hook: str) -> None:
    """Why an action failed is on a topic; a hook may hold a password, or a token in its path."""
    with pytest.raises(HookFailed, match="did not confirm epoch 3") as caught:
        await told(hook, timeout=0.05)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("pieces", [2, 40])
async def test_an_answer_may_come_in_pieces(pieces: int) -> None:
    """It is read to its end, not to the end of the first packet."""
    text = f'{{"digest": "{DIGEST}"}}'.encode()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for n in range(pieces):
            await response.write(text[n * len(text) // pieces : (n + 1) * len(text) // pieces])
            await asyncio.sleep(0.02)
        return response

    async with serving(answer) as url:
        assert await told(url) == DIGEST


async def test_an_answer_without_end_is_refused() -> None:
    """However it begins or ends: what is longer than the limit confirms nothing."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=" " * MAX_ANSWER + DIGEST)

    async with serving(answer) as url:
        with pytest.raises(HookFailed, match=f"longer than {MAX_ANSWER} bytes"):
            await told(url, timeout=0.7)


async def test_a_server_that_recovers_is_asked_again() -> None:
    """A restart of the server in the middle is no failure."""
    count = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal count
        count += 1
        return web.Response(status=503) if count < 3 else web.Response(text=DIGEST)

    async with serving(answer) as url:
        assert await told(url) == DIGEST
    assert count == 3


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (500, "out of\nmemory", "500 Internal Server Error: out of memory"),
        (200, "cd" * 32, "it answers that it serves cdcd"),
        (200, "", "serves nothing"),
        (200, "{}", "serves nothing"),
        (302, "", "302"),
        (502, "out of " + "order" * 20_000, "502 Bad Gateway: out of order"),
        (200, "[" * 30_000, "it answers that it serves"),
        (200, '{"digest": "a", "digest": "b"}', "it answers that it serves"),
        (200, '{"digest": NaN}', "it answers that it serves"),
    ],
)
async def test_a_server_that_does_not_confirm_fails_in_words(
    status: int, text: str, said: str
) -> None:
    """What it answered is in the error."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    async with serving(answer) as url:
        with pytest.raises(HookFailed, match=said):
            await told(url, timeout=0.7)


async def test_nobody_there() -> None:
    """A refused connection is said as such."""
    with pytest.raises(HookFailed, match=r"127\.0\.0\.1"):
        await told("http://127.0.0.1:9/hook", timeout=0.7)


def command(folder: Path, body: str) -> str:
    script = folder / "hook.py"
    script.write_text(f"import os, sys, time\n{body}\n", "utf-8")
    return f"{sys.executable} {script}"


async def test_a_command_confirms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the envelope on its standard input, and no secrets of ours."""
    monkeypatch.setenv("NNSEC_SASL_PASSWORD", "secret")
    hook = command(
        tmp_path,
        "assert sys.stdin.read() == 'envelope'\n"
        "assert 'NNSEC_SASL_PASSWORD' not in os.environ\n"
        "assert os.environ['NNSEC_EPOCH'] == '3'\n"
        "print('swapped'); print(os.environ['NNSEC_DIGEST'])",
    )
    assert await told(hook) == DIGEST


async def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    """Its status and the end of its standard error are in the message."""
    with pytest.raises(HookFailed, match="ended with 7: no such model"):
        await told(command(tmp_path, "print('no such model', file=sys.stderr); sys.exit(7)"), 1.0)


async def test_a_command_that_hangs_is_killed(tmp_path: Path) -> None:
    """It is over when the time is, and leaves no process behind."""
    begun = time.monotonic()
    mark = tmp_path / "late"
    body = f"time.sleep(2); open({str(mark)!r}, 'w')"
    with pytest.raises(HookFailed, match="no answer"):
        await told(command(tmp_path, body), 0.5)
    assert time.monotonic() - begun < 1.9
    assert not mark.exists()


async def test_a_command_that_is_not_there() -> None:
    """A misspelt command is named."""
    with pytest.raises(HookFailed, match="no-such-hook"):
        await told("/no-such-hook --now", 0.7)


@pytest.mark.parametrize("hook", ["sh -c 'swap", " ", "\t\n", "swap \0"])
async def test_what_is_no_command_is_a_configuration_error(hook: str, tmp_path: Path) -> None:
    """When the process starts, not after the swap."""
    with pytest.raises(ConfigError, match=r"\[serving\] hook"):
        Stage(configured(Settings(), tmp_path, serving={"hook": hook}))
    with pytest.raises(ConfigError, match=r"\[serving\] hook"):
        await told(hook, timeout=0.1)


async def test_a_host_that_cannot_be_named_fails_in_words() -> None:
    """Not every error of a URL is one of the client's own."""
    with pytest.raises(HookFailed, match="label"):
        await told(f"http://{'a' * 300}/hook", timeout=0.1)
