"""Verification: hostile bytes are refused in a fixed order, before a tensor is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from nnsec.adapters.registry import SIGNATURE, Registry
from nnsec.checkpoints import signing, tensors, verification
from nnsec.checkpoints.manifest import DETECTORS, LIMITS, MANIFEST, WEIGHTS, Manifest
from nnsec.checkpoints.verification import survey, verify, verify_files
from nnsec.errors import (
    BadSignature,
    DigestMismatch,
    Expired,
    RollbackRefused,
    TransientError,
    TrustError,
    Unsafe,
)
from nnsec.trust import keys
from nnsec.trust.keys import PrivateKey
from tests.nnsec.checkpoints.small_checkpoint import MODEL, NOW, VERSION, Files, MakeFiles


@pytest.fixture(autouse=True)
def _nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification never has a library build a tensor, whatever it is given."""

    def built(*args: Any, **options: Any) -> None:
        pytest.fail("a tensor was built")

    for module in (safetensors.numpy, safetensors.torch):
        monkeypatch.setattr(module, "load", built)


def _verify(files: Files, key: PrivateKey, **options: Any) -> verification.Verified:
    given = {"release_keys": (key.public,), "now": NOW} | options
    return verify_files(files, MODEL, VERSION, **given)


def test_a_good_checkpoint_verifies(files: MakeFiles, key: PrivateKey, manifest: Manifest) -> None:
    """The manifest and the very bytes come back, without the signature."""
    whole = files()
    found = _verify(whole, key, floor=VERSION)
    assert found.manifest == manifest
    assert found.key_id == key.id
    assert dict(found.files) == {n: c for n, c in whole.items() if n != SIGNATURE}
    assert _verify(whole, key, expected_digest=found.digest).digest == found.digest


@pytest.mark.parametrize("name", sorted(LIMITS))
@pytest.mark.parametrize("place", [0, 8, 9, -1])
def test_a_changed_byte_names_its_file(
    files: MakeFiles, key: PrivateKey, name: str, place: int
) -> None:
    """In any of the six files, at either end and in the header."""
    whole = files()
    changed = bytearray(whole[name])
    changed[place] ^= 1
    with pytest.raises(TrustError, match=name):
        _verify(whole | {name: bytes(changed)}, key)


def test_each_refusal_has_its_own_words(files: MakeFiles, key: PrivateKey) -> None:
    """Folder, digest, floor and expiry, each by a class of its own."""
    whole = files(expires=NOW + timedelta(hours=1))
    for options, error, words in (
        ({"floor": 4}, RollbackRefused, "older than version 4"),
        ({"expected_digest": "f" * 64}, DigestMismatch, "ffffffffffffffff… was expected"),
        ({"now": NOW + timedelta(hours=1)}, Expired, "m/3 expired at"),
        ({"release_keys": (keys.generate().public,)}, BadSignature, "not among the 1 trusted"),
        ({"release_keys": ()}, BadSignature, "release_keys"),
    ):
        with pytest.raises(error, match=words):
            _verify(whole, key, **options)
    _verify(whole, key, now=NOW + timedelta(minutes=59))
    for model, version in (("other", VERSION), (MODEL, VERSION + 1)):
        with pytest.raises(Unsafe, match=rf"is of m/3, but lies under {model}/{version}"):
            verify_files(whole, model, version, release_keys=(key.public,), now=NOW)


NAN = tensors.dump_arrays({"w": np.array([np.nan], np.float32)})


@pytest.mark.parametrize(
    ("replace", "error", "words"),
    [
        ({WEIGHTS: NAN}, Unsafe, f"{WEIGHTS}.*NaN"),
        ({DETECTORS: NAN}, Unsafe, f"{DETECTORS}.*NaN"),
        ({WEIGHTS: b"\x80\x04K\x01."}, Unsafe, f"{WEIGHTS}.*pickle"),
        ({WEIGHTS: b"PK\x03\x04" + b"\0" * 20}, Unsafe, f"{WEIGHTS}.*zip"),
        ({MANIFEST: b"{}"}, Unsafe, MANIFEST),
        ({WEIGHTS: None}, DigestMismatch, f"{WEIGHTS} is missing, and was not signed"),
        ({"run.py": b"import os"}, Unsafe, "run.py is not a file of a checkpoint"),
    ],
    ids=["nan", "nan in detectors", "pickle", "zip", "manifest", "missing", "a file too many"],
)
def test_signed_but_unsafe_is_refused(
    files: MakeFiles, key: PrivateKey, replace: dict[str, bytes | None],
    error: type[Exception], words: str,
) -> None:  # fmt: skip
    """A release key's signature does not make a file safe."""
    with pytest.raises(error, match=words):
        _verify(files(replace), key)


def test_sizes_and_names_are_bounded_before_anything_is_hashed(
    files: MakeFiles, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file over its limit, or a name with a path, is refused as it is."""
    whole = files()
    monkeypatch.setattr(
        signing, "verify", lambda *args: pytest.fail("looked at the signature first")
    )
    with pytest.raises(Unsafe, match="plain file name"):
        _verify(whole | {"../x": b""}, key)
    with pytest.raises(Unsafe, match=f"{SIGNATURE} has 1048577 bytes"):
        _verify(whole | {SIGNATURE: b" " * 1_048_577}, key)


@pytest.fixture
def registry(tmp_path: Path, files: MakeFiles) -> Registry:
    """A registry with version 3, as a folder."""
    found = Registry(str(tmp_path / "r"))
    found.upload(MODEL, VERSION, files())
    return found


def _link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: (f / WEIGHTS).unlink(), DigestMismatch, f"{WEIGHTS} is missing"),
        (lambda f: (f / WEIGHTS).rename(f / "w.safetensors"), Unsafe, "w.safetensors"),
        (lambda f: (f / ".git").mkdir(), Unsafe, ".git"),
        (lambda f: (f / "notes.txt").touch(), Unsafe, "notes.txt"),
        (lambda f: (f / SIGNATURE).unlink(), BadSignature, SIGNATURE),
        (_link, Unsafe, f"{WEIGHTS} is a symbolic link"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]), DigestMismatch,
         WEIGHTS),
    ],
    ids=["missing", "renamed", "hidden folder", "extra", "unsigned", "link", "cut"],
)  # fmt: skip
def test_a_changed_folder_is_refused(
    registry: Registry, key: PrivateKey, tmp_path: Path,
    change: Callable[[Path], Any], error: type[Exception], words: str,
) -> None:  # fmt: skip
    """What was put into, taken out of or moved about in a version's folder is named."""
    release = {"release_keys": (key.public,)}
    assert verify(registry, MODEL, VERSION, **release).manifest.version == VERSION
    change(tmp_path / "r" / MODEL / str(VERSION))
    with pytest.raises(error, match=words):
        verify(registry, MODEL, VERSION, **release)


def test_a_version_copied_under_another_number_is_refused(
    registry: Registry, key: PrivateKey, tmp_path: Path
) -> None:
    """The old checkpoint in the folder of a new one is no new one."""
    shutil.copytree(tmp_path / "r" / MODEL / "3", tmp_path / "r" / MODEL / "9")
    with pytest.raises(Unsafe, match="a folder was renamed or copied"):
        verify(registry, MODEL, 9, release_keys=(key.public,), now=NOW)


def test_a_survey_tells_good_from_bad(
    registry: Registry, key: PrivateKey, files: MakeFiles
) -> None:
    """One refused version hides none of the others, and says why."""
    registry.upload(MODEL, 4, files(version=4))
    registry.upload(MODEL, 5, files(version=4))
    found = survey(registry, MODEL, release_keys=(key.public,), now=NOW)
    assert sorted(found.manifests) == sorted(found.digests) == [3, 4]
    assert "renamed or copied" in str(found.refused[5])
    assert survey(registry, "unknown", release_keys=(key.public,)).manifests == {}


def test_a_file_that_may_not_be_read_hides_no_other_version(
    registry: Registry, key: PrivateKey, files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is refused, and the good ones are still found."""
    registry.upload(MODEL, 4, files(version=4))
    whole = registry._files.open

    def denied(path: str, *args: Any, **options: Any) -> Any:
        if path.endswith(f"/4/{WEIGHTS}"):
            raise PermissionError(13, "Permission denied", path)
        return whole(path, *args, **options)

    monkeypatch.setattr(registry._files, "open", denied)
    found = survey(registry, MODEL, release_keys=(key.public,), now=NOW)
    assert sorted(found.manifests) == [3]
    assert WEIGHTS in str(found.refused[4])


@pytest.fixture
def opened(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened in the registry from now on."""
    names: list[str] = []
    whole = registry._files.open

    def noted(path: str, *args: Any, **options: Any) -> Any:
        names.append(path.rpartition("/")[2])
        return whole(path, *args, **options)

    monkeypatch.setattr(registry._files, "open", noted)
    return names


def _sizes(whole: Files) -> dict[str, int]:
    return {n: len(c) for n, c in whole.items() if n not in (SIGNATURE, MANIFEST)}


def _grow(path: Path) -> None:
    """Make a file as large as may be; the disk holds none of it."""
    with path.open("ab") as file:
        file.truncate(LIMITS[WEIGHTS])


def test_nothing_is_read_under_a_signature_that_is_none(
    registry: Registry, key: PrivateKey, tmp_path: Path, opened: list[str]
) -> None:
    """A file as large as may be costs nothing where nobody signed it."""
    folder = tmp_path / "r" / MODEL / str(VERSION)
    _grow(folder / WEIGHTS)
    (folder / SIGNATURE).write_bytes(b"{}")
    with pytest.raises(BadSignature, match=SIGNATURE):
        verify(registry, MODEL, VERSION, release_keys=(key.public,), now=NOW)
    assert sorted(opened) == [MANIFEST, SIGNATURE]


def test_a_file_that_is_not_as_long_as_signed_is_not_read(
    registry: Registry, key: PrivateKey, files: MakeFiles, tmp_path: Path, opened: list[str]
) -> None:
    """Whether it is longer or shorter, or a version copied under another number."""
    registry.upload(MODEL, 4, files(version=4, sizes=_sizes(files())))
    opened.clear()
    verify(registry, MODEL, 4, release_keys=(key.public,), now=NOW)
    assert sorted(opened) == sorted(LIMITS)
    folder = tmp_path / "r" / MODEL / "4"
    shutil.copytree(folder, folder.parent / "5")
    opened.clear()
    with pytest.raises(Unsafe, match="renamed or copied"):
        verify(registry, MODEL, 5, release_keys=(key.public,), now=NOW)
    size = (folder / WEIGHTS).stat().st_size
    for change, found in (
        (_grow, LIMITS[WEIGHTS]),
        (lambda path: os.truncate(path, size - 1), size - 1),
    ):
        change(folder / WEIGHTS)
        with pytest.raises(DigestMismatch, match=f"{WEIGHTS} differs.* {found} bytes, not {size}"):
            verify(registry, MODEL, 4, release_keys=(key.public,), now=NOW)
    assert set(opened) == {MANIFEST, SIGNATURE}


def test_a_large_file_without_a_signed_size_is_hashed_before_it_is_kept(
    registry: Registry, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of before there were sizes: what differs never is in memory as a whole."""
    with (tmp_path / "r" / MODEL / str(VERSION) / WEIGHTS).open("ab") as file:
        file.truncate(verification.UNSIZED)
    fetched: list[str] = []
    whole = registry.fetch

    def fetch(model: str, version: int, sizes: dict[str, int]) -> Files:
        fetched.extend(sizes)
        return whole(model, version, sizes)

    monkeypatch.setattr(registry, "fetch", fetch)
    with pytest.raises(DigestMismatch, match=f"{WEIGHTS} differs"):
        verify(registry, MODEL, VERSION, release_keys=(key.public,), now=NOW)
    assert sorted(fetched) == [MANIFEST, SIGNATURE]


@pytest.mark.parametrize("name", sorted(LIMITS))
@pytest.mark.parametrize("sized", [True, False])
def test_what_is_swapped_while_it_is_read_is_never_used(
    registry: Registry, key: PrivateKey, files: MakeFiles, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, name: str, *, sized: bool,
) -> None:  # fmt: skip
    """Before any file is opened another may take its place: refused, or the bytes are those signed.

    As long as the true one and, where it is weights, safetensors too; it goes back and forth.
    """
    good = files(version=4, **({"sizes": _sizes(files())} if sized else {}))
    registry.upload(MODEL, 4, good)
    monkeypatch.setattr(verification, "UNSIZED", 0)
    path = tmp_path / "r" / MODEL / "4" / name
    bad = bytes([*good[name][:-1], good[name][-1] ^ 1])
    whole = registry._files.open
    outcomes = []
    for at in range(len(LIMITS) * 2):  # at which file it comes, and it stays for one
        seen = iter(range(100))

        def racing(place: str, *args: Any, at: int = at, seen: Any = seen, **options: Any) -> Any:
            path.write_bytes(bad if next(seen) == at else good[name])
            return whole(place, *args, **options)

        monkeypatch.setattr(registry._files, "open", racing)
        try:
            found = verify(registry, MODEL, 4, release_keys=(key.public,), now=NOW)
        except TrustError as error:
            assert name in str(error)  # noqa: PT017 - some of them must verify
            outcomes.append(False)
        else:
            assert dict(found.files) == {n: c for n, c in good.items() if n != SIGNATURE}
            outcomes.append(True)
    assert {*outcomes} == {True, False}


def test_a_registry_that_is_away_is_no_refusal(tmp_path: Path, key: PrivateKey) -> None:
    """The same call may succeed later."""
    with pytest.raises(TransientError):
        verify(Registry(str(tmp_path / "none")), MODEL, 1, release_keys=(key.public,))
