"""The hook of ``[serving]``: how a signed statement reaches what serves the model.

A URL gets the envelope by POST, a command on its standard input; both answer with the digest that
they serve now, as JSON ``{"digest": "…"}`` or as plain text (the last line). The same epoch may
come again and must answer the same: delivery is at least once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex

import aiohttp

from nnsec.errors import ConfigError, NNSecError, SchemaError
from nnsec.settings import Serving
from schemas import strict_json

CONTENT_TYPE = "application/vnd.dsse+json"
RETRY = 0.5
"""Seconds between two attempts."""
MAX_ANSWER = 64 * 1024


class HookFailed(NNSecError):  # noqa: N818 - the name says what it is
    """What serves the model did not confirm the checkpoint."""


async def deliver(
    serving: Serving, envelope: bytes, *, model: str, epoch: int, version: int, digest: str
) -> str:
    """Hand a statement to what serves, and have it confirm the digest.

    Parameters
    ----------
    serving:
        The hook, and within how many seconds it must have answered; attempts that failed are
        repeated until then.
    envelope:
        The signed statement (phase ``activate``) as it stands on ``models``.
    model, epoch, version, digest:
        What the statement says, for hooks that do not open envelopes: headers ``nnsec-model`` …
        or variables ``NNSEC_MODEL`` ….

    Returns
    -------
    The digest, as the hook answered it.

    Raises
    ------
    HookFailed
        Saying what the hook did or answered last.
    ConfigError
        As `check`.
    """
    facts = {"model": model, "epoch": str(epoch), "version": str(version), "digest": digest}
    last = "no answer"
    try:
        async with asyncio.timeout(serving.timeout):
            while True:
                try:
                    answer = await _once(serving.hook, envelope, facts)
                except aiohttp.InvalidURL:  # its text is the URL, which may hold a password
                    last = "[serving] hook is no URL that can be used"
                except (HookFailed, OSError, ValueError, aiohttp.ClientError) as error:
                    last = str(error) or type(error).__name__
                else:
                    if answer == digest:
                        return answer
                    last = f"it answers that it serves {answer or 'nothing'}, not {digest}"
                await asyncio.sleep(RETRY)
    except TimeoutError as error:
        raise HookFailed(
            f"the serving hook did not confirm epoch {epoch} within {serving.timeout:g} s: {last}"
        ) from error


def check(hook: str) -> None:
    """Refuse a hook that could never be called; a process does so when it starts.

    Raises
    ------
    ConfigError
        If it is neither a URL nor the words of a command.

    Examples
    --------
    >>> check("curl --data-binary @- http://serving/swap")
    >>> check("sh -c 'swap")
    Traceback (most recent call last):
    nnsec.errors.ConfigError: [serving] hook is no command: No closing quotation
    """
    if not _is_url(hook):
        _words(hook)


def _is_url(hook: str) -> bool:
    return hook.startswith(("http://", "https://"))


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"[serving] hook is no command: {error}") from error
    if not words or "\0" in command:
        raise ConfigError("[serving] hook names no command; leave it empty for none")
    return words


async def _once(hook: str, envelope: bytes, facts: dict[str, str]) -> str:
    if _is_url(hook):
        return _digest(await _post(hook, envelope, facts))
    return _digest(await _execute(hook, envelope, facts))


async def _post(url: str, envelope: bytes, facts: dict[str, str]) -> bytes:
    headers = {f"nnsec-{name}": value for name, value in facts.items()}
    headers["content-type"] = CONTENT_TYPE
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=envelope, headers=headers, allow_redirects=False) as answer,
    ):
        body = await _body(answer.content)
        if answer.status != 200:
            text = " ".join(body.decode("utf-8", "replace").split())[:200]
            raise HookFailed(f"it answers {answer.status} {answer.reason}: {text}")
        if len(body) > MAX_ANSWER:
            raise HookFailed(f"its answer is longer than {MAX_ANSWER} bytes")
        return body


async def _body(content: aiohttp.StreamReader) -> bytes:
    """All of an answer, which comes in as many pieces as it likes, or one byte more than it may."""
    body = b""
    while len(body) <= MAX_ANSWER and (piece := await content.read(MAX_ANSWER + 1 - len(body))):
        body += piece
    return body


async def _execute(command: str, envelope: bytes, facts: dict[str, str]) -> bytes:
    variables = {f"NNSEC_{name.upper()}": value for name, value in facts.items()}
    process = await asyncio.create_subprocess_exec(
        *_words(command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(variables),
    )
    try:
        out, err = await process.communicate(envelope)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        text = " ".join(err.decode("utf-8", "replace").split())[-200:]
        raise HookFailed(f"it ended with {process.returncode}: {text}")
    return out[-MAX_ANSWER:]


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """Ours without secrets: a hook needs PATH, not the passwords of Kafka."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NNSEC_")}
    return kept | variables


def _digest(answer: bytes) -> str:
    text = answer.decode("utf-8", "replace").strip()
    try:
        parsed = strict_json.loads(answer, limit=MAX_ANSWER)
    except SchemaError:
        return text.splitlines()[-1].strip() if text else ""
    if isinstance(parsed, dict):
        return str(parsed.get("digest", ""))
    return str(parsed)
