"""Signing: one spelling, every byte covered, and the format of the ``model_signing`` command."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.adapters.registry import SIGNATURE
from nnsec.checkpoints import signing
from nnsec.errors import BadSignature, DigestMismatch, Unsafe
from nnsec.trust import dsse, keys
from nnsec.trust.keys import PrivateKey
from tests.nnsec.checkpoints.small_checkpoint import Files, MakeFiles

COMMAND = Path(sys.executable).with_name("model_signing")
KEY, STRANGER = keys.generate(), keys.generate()
PLAIN = {"a.bin": b"first", "b.bin": b"second", "c.json": b"{}"}
SIGNATURE_BYTES = signing.sign("m/1", PLAIN, KEY)


def _whole() -> Files:
    return PLAIN | {SIGNATURE: SIGNATURE_BYTES}


def test_what_was_signed_verifies() -> None:
    """The digest is of the payload, and every file is listed with its own."""
    found = signing.verify(_whole(), (STRANGER.public, KEY.public))
    assert found.key_id == KEY.id
    assert sorted(found.files) == sorted(PLAIN)
    assert len(found.digest) == 64
    assert (
        found.digest
        != signing.verify(
            {"a.bin": b"x", SIGNATURE: signing.sign("m/1", {"a.bin": b"x"}, KEY)}, (KEY.public,)
        ).digest
    )


@given(
    name=st.sampled_from(sorted(_whole())), place=st.integers(0, 10_000), mask=st.integers(1, 255)
)
def test_a_changed_byte_anywhere_is_refused_by_file(name: str, place: int, mask: int) -> None:
    """Whatever byte of whatever file it is, the error names the file."""
    changed = bytearray(_whole()[name])
    changed[place % len(changed)] ^= mask
    with pytest.raises((BadSignature, DigestMismatch), match=name):
        signing.verify(_whole() | {name: bytes(changed)}, (KEY.public,))


def test_every_single_byte_of_the_signature_counts() -> None:
    """Not one byte of the bundle can be changed, not even to other base64 of the same meaning."""
    for place in range(len(SIGNATURE_BYTES)):
        changed = bytearray(SIGNATURE_BYTES)
        changed[place] ^= 1
        with pytest.raises(BadSignature, match=SIGNATURE):
            signing.verify(_whole() | {SIGNATURE: bytes(changed)}, (KEY.public,))


@pytest.mark.parametrize("name", sorted(_whole()))
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\n", lambda b: b"", lambda b: b + b], ids="-+0d"
)
def test_cut_and_extended_files_are_refused(name: str, change: Callable[[bytes], bytes]) -> None:
    """Also where the signature itself is cut or has bytes after it."""
    with pytest.raises((BadSignature, DigestMismatch), match=name):
        signing.verify(_whole() | {name: change(_whole()[name])}, (KEY.public,))


def test_missing_swapped_renamed_and_extra_files_are_refused() -> None:
    """The set of files is signed as much as their content."""
    whole = _whole()
    swapped = whole | {"a.bin": PLAIN["b.bin"], "b.bin": PLAIN["a.bin"]}
    missing = {name: content for name, content in whole.items() if name != "a.bin"}
    for files, error, words in (
        (swapped, DigestMismatch, "a.bin differs"),
        (missing, DigestMismatch, "a.bin is missing"),
        (missing | {"z.bin": PLAIN["a.bin"]}, Unsafe, "z.bin is not among the signed"),
        (whole | {"extra": b""}, Unsafe, "extra is not among the signed"),
        (PLAIN, BadSignature, "model.sig is missing"),
    ):
        with pytest.raises(error, match=words):
            signing.verify(files, (KEY.public,))


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b", "a\\b", ".git", "", "ü", "a\n", "x" * 129, "a\0"]
)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    """Neither signed nor verified."""
    with pytest.raises(Unsafe, match="plain file name"):
        signing.verify(_whole() | {name: b""}, (KEY.public,))
    with pytest.raises(Unsafe, match="plain file name"):
        signing.sign("m/1", {name: b""}, KEY)


def test_other_keys_are_not_trusted() -> None:
    """A stranger's key is named, as text; its signature under a trusted hint does not fit."""
    with pytest.raises(BadSignature, match=f"{KEY.id[:16]}.* 1 trusted"):
        signing.verify(_whole(), (STRANGER.public,))
    with pytest.raises(BadSignature, match="0 trusted"):
        signing.verify(_whole(), ())
    hostile = signing._bundle(b"{}", b"x", "\x1b[2J\x1b]0;own\x9c")
    with pytest.raises(BadSignature, match="is of key ") as caught:
        signing.verify(PLAIN | {SIGNATURE: hostile}, (KEY.public,))
    assert str(caught.value).isprintable()
    forged = signing.sign("m/1", PLAIN, STRANGER).replace(STRANGER.id.encode(), KEY.id.encode())
    with pytest.raises(BadSignature, match="does not fit its content"):
        signing.verify(PLAIN | {SIGNATURE: forged}, (KEY.public,))


def _payload() -> dict[str, Any]:
    bundle = json.loads(SIGNATURE_BYTES)
    found: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return found


def _signed(payload: bytes) -> bytes:
    return signing._bundle(payload, KEY.sign(dsse.encode(signing.PAYLOAD_TYPE, payload)), KEY.id)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        *steps, last = path.split(".")
        place: Any = statement
        for step in steps:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value

    return change


STATEMENTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "another type": _set("_type", "https://in-toto.io/Statement/v0.1"),
    "another predicate": _set("predicateType", "https://slsa.dev/provenance/v1"),
    "shards": _set("predicate.serialization.method", "shards"),
    "another hash": _set("predicate.serialization.hash_type", "blake2b"),
    "another algorithm": _set("predicate.resources.0.algorithm", "md5"),
    "no digest": _set("predicate.resources.0.digest", "abc"),
    "digest in capitals": _set("predicate.resources.0.digest", "A" * 64),
    "another root": _set("subject.0.digest", {"sha256": "0" * 64}),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "listed twice": lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][-1]),
    "no files": _set("predicate", {}),
    "resources a word": _set("predicate.resources", 7),
    "a name that is no text": _set("predicate.resources.0.name", 7),
}


@pytest.mark.parametrize("change", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_signed_nonsense_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    """A release key's signature does not make a list of files of any statement."""
    statement = _payload()
    change(statement)
    signature = _signed(json.dumps(statement, separators=(",", ":")).encode())
    with pytest.raises(BadSignature, match="signs no list of files"):
        signing.verify(PLAIN | {SIGNATURE: signature}, (KEY.public,))


def test_the_signature_cannot_sign_itself() -> None:
    """A statement that lists ``model.sig`` is refused though its root is right."""
    files = {"a.bin": b"", SIGNATURE: b""}
    signature = signing.sign("m/1", files, KEY)
    with pytest.raises(BadSignature, match="the signature itself"):
        signing.verify(files | {SIGNATURE: signature}, (KEY.public,))


def test_a_signed_path_out_of_the_folder_is_refused() -> None:
    """Even the owner of a release key cannot name a file elsewhere."""
    statement = _payload()
    statement["predicate"]["resources"][0]["name"] = "../../etc/passwd"
    signature = _signed(json.dumps(statement, separators=(",", ":")).encode())
    with pytest.raises(Unsafe, match="plain file name"):
        signing.verify(PLAIN | {SIGNATURE: signature}, (KEY.public,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\x80\x04K\x01.",
        b'{"dsseEnvelope":{"payload":"e"}}',
        b"{" * 5000,
    ],
    ids=["empty", "object", "list", "null", "pickle", "cut", "deep"],
)
def test_what_is_no_bundle_is_a_bad_signature(content: bytes) -> None:
    """One error class, whatever is wrong."""
    with pytest.raises(BadSignature, match="no signature bundle"):
        signing.verify(PLAIN | {SIGNATURE: content}, (KEY.public,))


def test_other_spellings_are_refused() -> None:
    """Spaces, or a signature longer than any can be, are no bundle of ours."""
    spaced = json.dumps(json.loads(SIGNATURE_BYTES)).encode()
    with pytest.raises(BadSignature, match="not written as"):
        signing.verify(PLAIN | {SIGNATURE: spaced}, (KEY.public,))
    long = signing._bundle(b"{}", b"x" * 300, KEY.id)
    with pytest.raises(BadSignature, match="300 bytes"):
        signing.verify(PLAIN | {SIGNATURE: long}, (KEY.public,))


def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def _write(folder: Path, files: Files) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_model_signing_accepts_a_checkpoint_and_its_own_is_accepted(
    tmp_path: Path, files: MakeFiles, key: PrivateKey
) -> None:
    """A third party verifies ours and refuses it when changed; we verify what it signs."""
    folder, public, private = tmp_path / "c", tmp_path / "k.pub", tmp_path / "k"
    public.write_bytes(key.public.pem())
    private.write_bytes(key.pem())
    _write(folder, files())
    verify = (
        "verify", "key", folder, "--public_key", public, "--signature", folder / SIGNATURE,
        "--ignore-paths", folder / SIGNATURE,
    )  # fmt: skip
    found = _run(*verify)
    assert found.returncode == 0, found.stderr
    (folder / "manifest.json").write_bytes(b"{}")
    assert _run(*verify).returncode != 0

    other = tmp_path / "theirs"
    _write(other, PLAIN)
    made = _run("sign", "key", other, "--private_key", private, "--signature", other / SIGNATURE)
    assert made.returncode == 0, made.stderr
    content = {file.name: file.read_bytes() for file in other.iterdir()}
    assert signing.verify(content, (key.public,)).key_id == key.id
