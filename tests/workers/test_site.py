"""What remediation says: read back before it counts, versions of its own, time that goes on."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from pathlib import Path

import pytest

from nnsec.adapters.records import Out
from nnsec.errors import BadSignature, ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys
from schemas.source import Source
from tests.workers.stage import T0, Stage, configured, statement
from workers import site
from workers.site import Overtaken


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(configured(Settings(), tmp_path))


async def test_no_two_source_statements_share_a_version(stage: Stage) -> None:
    """Where another process was faster it does not count: who reports a version heard all below."""
    other = Source(source="s9", state="quarantined", reason="", version=1, time=T0)
    real = stage.publish

    async def late(*outs: Out) -> bool:
        if not stage.said("sources"):
            await real(Out("sources", other.encode(), b"s9"))
        return await real(*outs)

    stage.site.publish = late
    with pytest.raises(Overtaken, match="version 1 of sources is of s9"):
        await stage.site.say_source("s1", "quarantined", "r", "i", after=0)
    said = await stage.site.say_source("s1", "quarantined", "r", "i", after=1)
    assert said.version == 2
    assert [(one.source, one.version) for one in stage.said("sources")] == [
        ("s9", 1), ("s1", 1), ("s1", 2),
    ]  # fmt: skip
    assert stage.site.sources_version == 2


async def test_a_statement_that_comes_back_late_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a word in the log, as nothing may be concluded before."""
    monkeypatch.setattr(site, "HEARD", 0.1)

    async def slow(*outs: Out) -> bool:
        return True

    stage.site.publish = slow
    said = stage.site.say_source("s1", "quarantined", "r", "i", after=0)

    async def back() -> None:
        await stage.until(lambda: "did not come back" in caplog.text)
        source = Source(
            source="s1", state="quarantined", reason="r", incident="i", version=1, time=T0
        )
        stage.site.learn(stage.record("sources", source.encode()))

    found, _ = await asyncio.gather(said, back())
    assert found.version == 1


async def test_time_never_stands_still_between_two_reports(stage: Stage) -> None:
    """Readers tell old from new by it, and it has milliseconds."""
    await stage.order("halt")
    action = stage.actions()[0]
    times = []
    for _ in range(3):
        action = await stage.site.report(action, "done", "again\nand again")
        times.append(action.time)
    assert all(b - a >= timedelta(milliseconds=1) for a, b in itertools.pairwise(times))
    assert action.reason == "again and again"


async def test_what_is_decided_on_an_old_state_is_without_effect(stage: Stage) -> None:
    """Of two steps from one state the first in the log counts, for whoever said the other too."""
    await stage.order("halt")
    (action,) = stage.actions()
    await stage.site.report(action, "done", "first")
    with pytest.raises(Overtaken, match="another worker went on with halt of digits"):
        await stage.site.report(action, "failed", "second")
    assert stage.site.actions[action.id].reason == "first"
    stage.start()
    assert stage.site.actions[action.id].reason == "first"


async def test_a_statement_needs_a_key(tmp_path: Path) -> None:
    """Without one nothing is published."""
    bare = Stage(configured(Settings(), tmp_path, remediation={"release_key": ""}))
    with pytest.raises(ConfigError, match="release_key"):
        await bare.site.say_model(statement(1, 1))
    assert bare.tape == []


async def test_a_key_that_nobody_trusts_says_nothing(tmp_path: Path) -> None:
    """Readers would leave the statement out, and it would be waited for in vain."""
    stage = Stage(configured(Settings(), tmp_path))
    (tmp_path / "release").write_bytes(keys.generate().pem())
    with pytest.raises(BadSignature):
        await stage.site.say_model(statement(1, 1))
    assert stage.tape == []


async def test_a_model_statement_is_waited_for_until_it_was_read_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What another process said first stands before it in the log, and is known by then."""
    monkeypatch.setattr(site, "HEARD", 0.1)
    said: list[Out] = []

    async def slow(*outs: Out) -> bool:
        said.extend(outs)
        return True

    stage.site.publish = slow
    saying = asyncio.create_task(stage.site.say_model(statement(1, 1)))
    await stage.until(lambda: "epoch 1 (activate) of digits did not come back" in caplog.text)
    stage.serve(2, 1)
    stage.site.learn(stage.record("models", said[0].value))
    await saying
    active = stage.site.standings["digits"].activated
    assert active is not None
    assert active.version == 2
