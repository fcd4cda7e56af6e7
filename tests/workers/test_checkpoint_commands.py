"""``nnsec checkpoint``, ``calibrate`` and ``keys``: as people and programs use them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.checkpoints import signing
from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Settings, parse
from nnsec.trust import commands, keys, statements
from schemas.revocation import Revocation
from tests.conftest import MadeCheckpoint
from workers import cli, releases
from workers.releases import release

NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote for programs; nothing else may be on standard output."""
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    checkpoint: MadeCheckpoint,
) -> Run:  # fmt: skip
    """Run ``nnsec`` in a folder with a registry of its own that holds digits/1."""
    shutil.copytree(checkpoint.registry, tmp_path / "registry")
    (tmp_path / "nnsec.toml").write_text(
        f'kafka.bootstrap_servers = "{NOWHERE}"\n'
        '[registry]\nurl = "registry"\n'
        f'[trust]\nrelease_keys = ["{checkpoint.release_key}.pub"]\n'
        f'operator_keys = ["{checkpoint.operator_key}.pub"]\n'
        '[models.digits]\narchitecture = "nnsec.models:small_cnn"\ndevice = "cpu"\n'
        'input = { shape = [1, 8, 8], dtype = "uint8", range = [0, 16] }\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("workers.shelf.BROKER_SECONDS", 0.5)

    def call(*words: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["nnsec", *map(str, words)])
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main()
        except SystemExit as error:
            status = error.code or 0
        out, err = capsys.readouterr()
        return Ended(status, out, err)

    return call


@pytest.fixture
def online(run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Have the command use the embedded broker under a prefix of the test's own."""
    monkeypatch.setenv("NNSEC_KAFKA__BOOTSTRAP_SERVERS", settings.kafka.bootstrap_servers)
    monkeypatch.setenv("NNSEC_KAFKA__PREFIX", settings.kafka.prefix)
    monkeypatch.setenv("NNSEC_KAFKA__PARTITIONS", "{inputs = 4, control = 1}")
    monkeypatch.setattr("workers.shelf.BROKER_SECONDS", 20.0)
    monkeypatch.setattr("workers.commands.orders.WAIT", 0.1)  # no worker runs here
    return settings


def _read(settings: Settings, topic: str) -> list[Record]:
    async def read() -> list[Record]:
        return [record async for record in kafka.read_to_end(settings, (topic,))]

    return asyncio.run(read())


# --- keys ---


@pytest.mark.parametrize("role", keys.ROLES)
def test_a_key_is_made_for_each_role(run: Run, tmp_path: Path, role: str) -> None:
    """Both files are there, and the words name the setting that trusts the public one."""
    found = run("keys", "new", "--role", role, "--out", "k/one")
    assert found.status == 0, found.err
    assert keys.load_private("k/one").id == keys.load_public("k/one.pub").id
    assert keys.load_public("k/one.pub").id in found.out
    assert ('_keys = ["k/one.pub"]' in found.out) == (role != "audit")
    other = run("keys", "new", "--role", role, "--out", "k/two", "--json")
    assert other.json["id"] == keys.load_public(other.json["public"]).id


def test_keys_are_never_overwritten_and_roles_are_known(run: Run) -> None:
    """Both mistakes end with 2 and leave nothing changed."""
    Path("one").write_text("precious")
    again = run("keys", "new", "--role", "release", "--out", "one")
    assert (again.status, Path("one").read_text()) == (2, "precious")
    assert "never overwritten" in again.err
    wrong = run("keys", "new", "--role", "root", "--out", "two")
    assert (wrong.status, Path("two").exists()) == (2, False)
    assert "release, operator, audit" in wrong.err


# --- create ---


def test_create_says_what_can_be_promised(run: Run, checkpoint: MadeCheckpoint) -> None:
    """For people: digest, n, the smallest p, the range of false positives, shares, accuracies."""
    arguments = ("--weights", checkpoint.weights, "--reference", checkpoint.reference,
                 "--key", checkpoint.release_key)  # fmt: skip
    found = run("checkpoint", "create", *arguments)
    assert found.status == 0, found.err
    for words in ("digits/2", "clean inputs flagged", "smallest p-value", "attacks found",
                  "steadily where", "PGD", "not released"):  # fmt: skip
        assert words in found.out
    assert "guessing" not in found.out
    said = run("checkpoint", "create", *arguments, "--version", "7", "--json").json
    assert (said["model"], said["version"], said["epoch"]) == ("digits", 7, None)
    assert said["smallest_p"] == pytest.approx(1 / (said["n"] + 1))
    assert 0 < said["false_positive_rate"][0] < said["false_positive_rate"][1] < 0.05
    assert 0 < said["smallest_attack_share"] < 1
    assert said["robust_accuracy"] < said["clean_accuracy"] > 0.8
    assert said["digest"] in {row["digest"] for row in run("checkpoint", "verify", "--json").json}


def test_a_model_that_guesses_is_pointed_out(run: Run, checkpoint: MadeCheckpoint) -> None:
    """The frequent mistake of another scaling shows in the accuracy, and is said."""
    from safetensors.torch import load_file, save_file

    weights = {name: tensor * 0 for name, tensor in load_file(checkpoint.weights).items()}
    save_file(weights, "zeros")
    arguments = ("--reference", checkpoint.reference, "--key", checkpoint.release_key)
    guessed = run("checkpoint", "create", "--weights", "zeros", *arguments)
    assert (guessed.status, "about what guessing gives" in guessed.out) == (0, True), guessed.err


def test_create_refuses_what_nobody_would_load(run: Run, checkpoint: MadeCheckpoint) -> None:
    """A key outside [trust], an existing version, a missing file: status 2, nothing made."""
    run("keys", "new", "--role", "release", "--out", "mine")
    given = {"--weights": checkpoint.weights, "--reference": checkpoint.reference,
             "--key": checkpoint.release_key}  # fmt: skip
    for change, words in (
        ({"--key": Path("mine")}, "mine is no key of [trust] release_keys"),
        ({"--version": Path("1")}, "the next free one is 2"),
        ({"--weights": Path("none")}, "weights none cannot be read"),
        ({"--reference": Path("none")}, "none is no npz file"),
        ({"--model": Path("letters")}, "no model 'letters' is configured"),
    ):
        options = [word for pair in (given | change).items() for word in pair]
        found = run("checkpoint", "create", *options)
        assert (found.status, words in found.err) == (2, True), found.err
    assert [row["version"] for row in run("checkpoint", "list", "--json").json] == [1]


def test_create_without_any_trust_says_what_to_add(
    run: Run, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever only makes checkpoints need not trust any key, and is told who must."""
    monkeypatch.setenv("NNSEC_TRUST__RELEASE_KEYS", "[]")
    arguments = ("--weights", checkpoint.weights, "--reference", checkpoint.reference,
                 "--key", checkpoint.release_key)  # fmt: skip
    found = run("checkpoint", "create", *arguments)
    assert found.status == 0, found.err
    assert f'release_keys = ["{checkpoint.release_key}.pub"]' in found.err.replace("\n", "")
    assert run("checkpoint", "create", *arguments, "--release").status == 2
    assert "no key is trusted" in run("checkpoint", "verify").err
    seen = run("checkpoint", "verify", "--key", f"{checkpoint.release_key}.pub", "--json").json
    assert [row["verified"] for row in seen] == [True, True]


def test_a_release_needs_a_broker_before_anything_is_made(
    run: Run, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint is left behind that was meant to be released and was not."""
    monkeypatch.setenv("NNSEC_KAFKA__BOOTSTRAP_SERVERS", "embedded")
    found = run("checkpoint", "create", "--weights", checkpoint.weights, "--reference",
                checkpoint.reference, "--key", checkpoint.release_key, "--release")  # fmt: skip
    assert (found.status, "no broker" in found.err) == (2, True)
    assert not Path("registry/digits/2").exists()


# --- release ---


def test_releases_are_epochs_one_and_two(
    run: Run, online: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Each is prepared and activated, signed, and names the checkpoint by its digest."""
    found = run("checkpoint", "release", "--key", checkpoint.release_key)
    assert found.status == 0, found.err
    assert "digits/1 serves from epoch 1" in found.out
    made = run(
        "checkpoint", "create", "--weights", checkpoint.weights, "--reference",
        checkpoint.reference, "--key", checkpoint.release_key, "--release", "--json",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert (made.json["version"], made.json["epoch"]) == (2, 2)
    records = _read(online, "models")
    trusted = (keys.load_public(f"{checkpoint.release_key}.pub"),)
    said = [statements.read_statement(record, trusted) for record in records]
    assert [(one.epoch, one.phase, one.version) for one in said] == [
        (1, "prepare", 1), (1, "activate", 1), (2, "prepare", 2), (2, "activate", 2),
    ]  # fmt: skip
    assert {one.digest for one in said} == {checkpoint.digest, made.json["digest"]}
    assert {record.key for record in records} == {b"digits"}
    assert all(("ce_type", b"nnsec.model.v1") in record.headers for record in records)
    third = run("checkpoint", "release", "--key", checkpoint.release_key, "--version", "1",
                "--json")  # fmt: skip
    assert third.json["epoch"] == 3


async def test_a_statement_that_nobody_would_believe_is_not_signed(
    settings: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Without the key in [trust], the topic is not even looked at."""
    with pytest.raises(ConfigError, match=r"not among the 0 .* release_keys"):
        await release(settings, model="digits", version=1, digest=checkpoint.digest,
                      key=keys.load_private(checkpoint.release_key), reason="test")  # fmt: skip


async def test_what_reached_the_log_too_late_is_released_anew(
    online: Settings, checkpoint: MadeCheckpoint
) -> None:
    """The broker was away in between; what is returned is what stands, or an error says why not."""
    key = keys.load_private(checkpoint.release_key)
    trust = {"release_keys": [f"{checkpoint.release_key}.pub"]}
    given = parse(online.model_dump() | {"trust": trust})
    wanted: dict[str, Any] = {"version": 1, "digest": checkpoint.digest, "key": key, "reason": "t"}
    late = datetime.now(UTC) - timedelta(hours=1)
    clock = iter([late] * 3)
    said = await release(
        given, model="digits", now=lambda: next(clock, datetime.now(UTC)), **wanted
    )
    records = [record async for record in kafka.read_to_end(online, ("models",))]
    assert len(records) == 4
    active = statements.fold(records, (key.public,)).models["digits"].activated
    assert active is not None
    assert (active.epoch, active.version) == (said.epoch, said.version) == (1, 1)
    with pytest.raises(TransientError, match="digits/1 is not released: 3 times"):
        await release(given, model="digits", now=lambda: late, **wanted)


async def test_what_others_overtook_is_released_anew(
    online: Settings, checkpoint: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that serves now is not this one: two others came between its look and its word."""
    key = keys.load_private(checkpoint.release_key)
    trust = {"release_keys": [f"{checkpoint.release_key}.pub"]}
    given = parse(online.model_dump() | {"trust": trust})
    look, looks = releases._standing, 0

    async def overtaken(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        found = await look(*args)
        if looks == 1:
            for version in (8, 9):
                await release(given, model="digits", version=version, digest="9" * 64, key=key,
                              reason="t")  # fmt: skip
        return found

    monkeypatch.setattr(releases, "_standing", overtaken)
    said = await release(given, model="digits", version=1, digest=checkpoint.digest, key=key,
                         reason="t")  # fmt: skip
    records = [record async for record in kafka.read_to_end(online, ("models",))]
    active = statements.fold(records, (key.public,)).models["digits"].activated
    assert active is not None
    assert (active.epoch, active.version) == (said.epoch, said.version) == (3, 1)


def test_what_does_not_verify_is_not_released(
    run: Run, online: Settings, checkpoint: MadeCheckpoint
) -> None:
    """Neither a changed checkpoint nor one signed for release by an operator's key."""
    wrong = run("checkpoint", "release", "--key", checkpoint.operator_key)
    assert (wrong.status, "release_keys" in wrong.err) == (2, True)
    with Path("registry/digits/1/weights.safetensors").open("ab") as file:
        file.write(b"\0")
    found = run("checkpoint", "release", "--key", checkpoint.release_key)
    assert (found.status, "weights.safetensors" in found.err) == (1, True)


# --- verify and list ---


def test_verify_names_the_changed_file(run: Run) -> None:
    """One refused version makes the status 1, and the others are still shown."""
    assert run("checkpoint", "verify").status == 0
    shutil.copytree("registry/digits/1", "registry/digits/2")
    content = bytearray(Path("registry/digits/1/detectors.safetensors").read_bytes())
    content[-1] ^= 1
    Path("registry/digits/1/detectors.safetensors").write_bytes(content)
    found = run("checkpoint", "verify")
    assert found.status == 1
    assert "DigestMismatch: detectors.safetensors" in found.out
    assert "Unsafe: manifest.json is of digits/1, but lies under digits/2" in found.out
    one = run("checkpoint", "verify", "--version", "1", "--json")
    assert (one.status, one.json[0]["verified"]) == (1, False)
    listed = run("checkpoint", "list")
    assert listed.status == 0
    assert "no: detectors.safetensors differs" in listed.out


def test_verify_takes_a_folder(run: Run, tmp_path: Path, checkpoint: MadeCheckpoint) -> None:
    """A checkpoint that came by another way is verified under the name of its folder."""
    shutil.copytree("registry/digits", "elsewhere/digits")
    found = run("checkpoint", "verify", "elsewhere/digits/1", "--json")
    assert found.json[0] | {"key": ""} == {
        "model": "digits", "version": 1, "verified": True, "digest": checkpoint.digest, "key": "",
        "error": "",
    }  # fmt: skip
    for words, said in (
        (("elsewhere/digits",), "ends in MODEL/VERSION"),
        (("elsewhere/digits/1", "--version", "1"), "not both"),
        (("--model", "digits", "--version", "1", "--key", "none"), "cannot be read"),
    ):
        wrong = run("checkpoint", "verify", *words)
        assert (wrong.status, said in wrong.err) == (2, True)
    missing = run("checkpoint", "verify", "--version", "9")
    assert (missing.status, "no checkpoint digits/9" in missing.out) == (1, True)


@pytest.mark.parametrize("hint", ["[/red]", "\x1b[2J\x1b[H"])
@pytest.mark.parametrize("words", ["verify", "list", "release"])
def test_a_hostile_signature_steers_no_terminal(
    run: Run, checkpoint: MadeCheckpoint, words: str, hint: str
) -> None:
    """What it names as its key is shown as text, be it markup or an escape sequence."""
    Path("registry/digits/9").mkdir()
    content = signing._bundle(b"{}", b"x", hint)
    Path("registry/digits/9/model.sig").write_bytes(content)
    options = ("--key", checkpoint.release_key) if words == "release" else ()
    found = run("checkpoint", words, *options)
    assert found.status == (0 if words == "list" else 1)
    assert "\x1b" not in found.out + found.err
    assert repr(hint)[1:5] in re.sub(r"\s", "", found.out + found.err)


def test_an_empty_registry_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to list is no mistake; nothing to verify or to calibrate is."""
    monkeypatch.setenv("NNSEC_REGISTRY__URL", "'empty'")
    assert "no checkpoint in empty" in run("checkpoint", "list").out
    for words in ((), ("--json",)):
        assert run("checkpoint", "verify", *words).status == 1
    assert "no checkpoint to verify" in run("checkpoint", "verify", "--model", "digits").out
    wrong = run("checkpoint", "verify", "--model", "digist")
    assert (wrong.status, "no model 'digist' is configured" in wrong.err) == (2, True)
    found = run("calibrate")
    assert (found.status, "nnsec checkpoint create" in found.err) == (2, True)


def test_a_list_without_a_broker_says_what_it_does_not_know(run: Run) -> None:
    """Taint is unknown, all else is there."""
    found = run("checkpoint", "list")
    assert (found.status, "nobody knows what was revoked" in found.err) == (0, True)
    assert found.out.split()[-1] == "?"
    (row,) = run("checkpoint", "list", "--model", "digits", "--json").json
    assert (row["tainted"], row["verified"], row["rows"], row["parent"]) == (None, True, 0, None)


def test_the_docs_verify_with_the_tool_of_others(
    tmp_path: Path, checkpoint: MadeCheckpoint
) -> None:
    """The command in docs/checkpoints.md runs as it stands, and fails on a changed file."""
    docs = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text("utf-8")
    command = re.search(r"^    model_signing (?:.*\\\n)*.*$", docs, re.MULTILINE)
    assert command is not None
    shutil.copytree(checkpoint.registry, tmp_path / ".nnsec" / "registry")
    (tmp_path / "keys").mkdir()
    shutil.copy(f"{checkpoint.release_key}.pub", tmp_path / "keys" / "release.pub")

    def status() -> int:
        return subprocess.run(
            ["/bin/sh", "-c", command[0]], cwd=tmp_path, capture_output=True, timeout=60,
            check=False, env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        ).returncode  # fmt: skip

    assert status() == 0
    (tmp_path / ".nnsec" / "registry" / "digits" / "1" / "manifest.json").write_text("{}")
    assert status() != 0


# --- taint ---

LOG = UUID(int=7)


def _poisoned(folder: Path, made: MadeCheckpoint) -> None:
    """Put version 2, which learned from row 3 of record 5, and its child 3 into the registry."""
    from nnsec.adapters.registry import Registry
    from nnsec.checkpoints import Parent, create, gather
    from nnsec.checkpoints.provenance import batch
    from nnsec.checkpoints.reference import read
    from nnsec.settings import ModelTable

    spec = ModelTable.model_validate(
        {"architecture": "nnsec.models:small_cnn", "device": "cpu",
         "input": {"shape": [1, 8, 8], "dtype": "uint8", "range": [0, 16]}}
    )  # fmt: skip
    x, y = read(made.reference)
    learned = batch(LOG, 0, 5, (3,), x[:1], y[:1])
    parent = None
    for batches in ([learned], []):
        found = create(
            Registry(str(folder)), model="digits", spec=spec, weights=made.weights, x=x, y=y,
            key=keys.load_private(made.release_key), now=datetime.now(UTC), parent=parent,
            provenance=gather(batches),
        )  # fmt: skip
        parent = Parent(version=found.version, digest=found.digest)


def _publish(settings: Settings, *revocations: Revocation) -> None:
    async def publish() -> None:
        await kafka.declare(settings, now=datetime.now(UTC))
        async with kafka.publisher(settings) as said:
            await said(*(Out("training.revocations", one.encode()) for one in revocations))

    asyncio.run(publish())


def test_taint_is_read_from_the_topic(
    run: Run, online: Settings, checkpoint: MadeCheckpoint
) -> None:
    """The poisoned version and its child are named, with the sample; a release clears them."""
    _poisoned(Path("registry"), checkpoint)
    clean = run("checkpoint", "tainted")
    assert "0 of 3 checkpoints are tainted; the newest clean one is 3" in clean.out
    revocation = Revocation(
        id="r", model="digits", source="s", incident="", log=LOG, positions=((0, 5, 3),),
        reason="poison", time=datetime.now(UTC),
    )  # fmt: skip
    _publish(online, revocation)
    found = run("checkpoint", "tainted")
    assert "digits/2 learned from 1 revoked samples, the first at" in found.out
    assert "digits/3 its parent, version 2," in found.out
    assert "2 of 3 checkpoints are tainted; the newest clean one is 1" in found.out
    assert run("checkpoint", "tainted", "--json").json["clean"] == [1]
    listed = run("checkpoint", "list", "--json").json
    assert [bool(row["tainted"]) for row in listed] == [False, True, True]
    assert [row["parent"] for row in listed] == [None, None, 2]
    _publish(online, revocation.model_copy(update={"id": "r2", "withdrawn": True}))
    assert run("checkpoint", "tainted", "--json").json["tainted"] == {}
    shown = run("checkpoint", "list")
    assert "digits/3" in shown.out
    assert shown.err == ""


# --- rollback ---


def test_a_rollback_is_a_signed_command(
    run: Run, online: Settings, checkpoint: MadeCheckpoint
) -> None:
    """The target is the version, or the model itself for the newest clean one."""
    found = run("checkpoint", "rollback", "--key", checkpoint.operator_key, "--reason", "it lies",
                "--to", "1", "--json")  # fmt: skip
    assert found.status == 0, found.err
    run("checkpoint", "rollback", "--key", checkpoint.operator_key, "--reason", "again")
    trusted = (keys.load_public(f"{checkpoint.operator_key}.pub"),)
    records = _read(online, "commands")
    opened = [commands.open_command(r.value, trusted, datetime.now(UTC)).command for r in records]
    assert [(one.kind, one.target, one.reason) for one in opened] == [
        ("rollback", "1", "it lies"), ("rollback", "digits", "again"),
    ]  # fmt: skip
    assert opened[0].id == found.json["command"]
    wrong = run("checkpoint", "rollback", "--key", checkpoint.release_key, "--reason", "x")
    assert (wrong.status, "operator_keys" in wrong.err) == (2, True)


# --- calibrate ---


def test_calibrate_tries_the_promise_on_fresh_inputs(run: Run, checkpoint: MadeCheckpoint) -> None:
    """Clean inputs keep it; noise does not; the data that it was made with show nothing."""
    plain = run("calibrate")
    assert "clean inputs flagged" in plain.out
    assert "tried on" not in plain.out
    np.savez("fresh.npz", x=checkpoint.x, y=checkpoint.y)
    fresh = run("calibrate", "--version", "1", "--reference", "fresh.npz")
    assert "no more than promised" in fresh.out
    noise = np.random.default_rng(0).integers(0, 17, (50, 1, 8, 8)).astype(np.uint8)
    np.savez("noise.npz", x=noise, y=np.zeros(50, np.int64))
    strange = run("calibrate", "--reference", "noise.npz", "--json").json["tried"]
    assert (strange["flagged"], strange["n"]) == (50, 50)
    assert strange["verdict"].startswith("more than promised")
    same = run("calibrate", "--reference", checkpoint.reference)
    assert (same.status, "calibrated on" in same.err) == (2, True)


# --- the program ---


def test_the_commands_start_without_torch() -> None:
    """Help and orders answer at once: nothing that builds networks is imported for them."""
    program = (
        "import sys; from workers.commands import calibrate, checkpoint, keys; "
        "sys.exit(' '.join({'torch', 'sklearn', 'scipy'} & set(sys.modules)) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (found.stderr.strip(), found.returncode) == ("", 0)
