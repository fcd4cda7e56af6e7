"""The registry: a folder of plain files, in which nothing is overwritten or half there."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from nnsec.adapters.registry import SIGNATURE, Registry
from nnsec.errors import BadSignature, ConfigError, NNSecError, TransientError, Unsafe

FILES = {"model.sig": b"s", "weights": b"w", "a": b""}


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """An empty registry, as a folder and as an object store."""
    return Registry(str(tmp_path / "r") if request.param == "folder" else f"memory://{tmp_path}")


def test_what_was_uploaded_is_listed_and_fetched(registry: Registry) -> None:
    """Content comes back by name; versions are ordered as numbers."""
    assert registry.list("m") == ()
    assert registry.models() == ()
    for version in (10, 2, 1):
        registry.upload("m", version, FILES)
    assert registry.list("m") == (1, 2, 10)
    assert registry.models() == ("m",)
    assert registry.next_version("m") == 11
    assert registry.fetch("m", 2) == FILES


def test_a_version_is_never_overwritten(registry: Registry) -> None:
    """The error names the next free version."""
    registry.upload("m", 1, FILES)
    with pytest.raises(ConfigError, match="next free one is 2"):
        registry.upload("m", 1, {"model.sig": b"other"})
    with pytest.raises(ConfigError, match="next free one is 2"):
        registry.check_free("m", 1)
    registry.check_free("m", 2)
    assert registry.fetch("m", 1) == FILES


def test_the_signature_is_written_last(registry: Registry, monkeypatch: Any) -> None:
    """If writing stops at any file, there is no checkpoint, and its number is not used again."""
    written: list[str] = []
    whole = registry._fs.pipe_file

    def pipe_file(path: str, value: bytes) -> None:
        name = path.rpartition("/")[2]
        if name == SIGNATURE:
            raise OSError("disk full")
        written.append(name)
        whole(path, value)

    monkeypatch.setattr(registry._fs, "pipe_file", pipe_file)
    with pytest.raises(TransientError, match="disk full"):
        registry.upload("m", 1, FILES)
    assert written == ["a", "weights"]
    assert registry.list("m") == ()
    assert registry.next_version("m") == 2


def test_two_writers_of_one_version(tmp_path: Path, monkeypatch: Any) -> None:
    """Who makes the folder has it, even if both saw it missing."""
    registry = Registry(str(tmp_path))
    registry.upload("m", 1, FILES)
    monkeypatch.setattr(registry._fs, "exists", lambda path: False)
    with pytest.raises(ConfigError, match="never overwritten"):
        registry.upload("m", 1, FILES)


def test_no_message_shows_a_password(tmp_path: Path, monkeypatch: Any) -> None:
    """What is raised is printed, logged, and said on topics that others read."""
    secret = f"memory://user:sec/ret@{tmp_path}?key=s3cr3t"
    registry = Registry(secret)
    assert registry.url == f"memory://{tmp_path}"
    texts = [registry.upload("m", 1, FILES | {str(n): b"" for n in range(40)})]

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError(f"no answer from {secret}")

    def note(call: Callable[[], Any]) -> None:
        with pytest.raises(NNSecError) as caught:
            call()
        texts.append(str(caught.value))

    note(lambda: registry.fetch("m", 1))
    note(lambda: registry.fetch("m", 2))
    note(lambda: registry.check_free("m", 1))
    note(lambda: Registry(secret.replace("memory", "none")))
    note(lambda: Registry("ftp://user:se/cret@host/x"))
    monkeypatch.setattr("fsspec.core.url_to_fs", fails)
    note(lambda: Registry(secret))
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: fails())
    monkeypatch.setattr(registry._fs, "ls", fails)
    note(lambda: registry.list("m"))
    assert len(texts) == 8
    assert [text for text in texts if "ret" in text or "user" in text or "'se'" in text] == []


def test_an_address_that_connects_at_once_may_be_away() -> None:
    """An FTP server is asked when the registry is opened, not when it is read."""
    with pytest.raises(TransientError, match="cannot be reached at ftp://127"):
        Registry("ftp://user:word@127.0.0.1:1/x")


def test_what_is_not_there(registry: Registry) -> None:
    """A missing version names those that are there; a missing registry may come back."""
    with pytest.raises(TransientError, match="not there"):
        Registry(f"{registry.url}/nowhere").fetch("m", 1)
    registry.upload("m", 4, FILES)
    with pytest.raises(BadSignature, match=r"no checkpoint m/5 .* there: 4"):
        registry.fetch("m", 5)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "ü", "x" * 129, "a\n"])
def test_names_cannot_leave_the_registry(tmp_path: Path, name: str) -> None:
    """A model's name is one plain folder name."""
    with pytest.raises(ConfigError, match="model name"):
        Registry(str(tmp_path)).list(name)


def test_the_next_version_follows_what_is_signed(registry: Registry) -> None:
    """A folder without a signature takes its own number from us, and no other."""
    registry.upload("m", 2, FILES)
    for version in (3, 5, 999_999_999):
        registry.upload("m", version, {"notes": b""})
    assert registry.next_version("m") == 4
    registry.upload("m", registry.next_version("m"), FILES)
    assert registry.next_version("m") == 6
    assert registry.next_version("m", above=2) == 6
    assert registry.list("m") == (2, 4)


def test_there_is_no_version_that_is_not_listed(registry: Registry) -> None:
    """After the last number the error says what to remove; nothing is written."""
    registry.upload("m", 2, FILES)
    registry.upload("m", 999_999_999, FILES)
    with pytest.raises(ConfigError, match=r"from 1 to 999999999; .* remove its folder"):
        registry.upload("m", registry.next_version("m"), FILES)
    registry.upload("m", registry.next_version("m", above=2), FILES)
    assert registry.list("m") == (2, 3, 999_999_999)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_count_from_one(tmp_path: Path, version: int) -> None:
    """There is no version 0."""
    with pytest.raises(ConfigError, match="whole numbers from 1"):
        Registry(str(tmp_path)).fetch("m", version)


def test_other_folders_are_no_versions(tmp_path: Path) -> None:
    """Leading zeros, words and files beside versions are passed over."""
    registry = Registry(str(tmp_path))
    registry.upload("m", 3, FILES)
    for name in ("03", "0", "latest", ".git"):
        (tmp_path / "m" / name).mkdir()
        (tmp_path / "m" / name / SIGNATURE).write_bytes(b"")
    (tmp_path / "m" / "notes.txt").write_text("")
    assert registry.list("m") == (3,)


def _link_file(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


def _link_folder(folder: Path) -> None:
    folder.rename(folder.parent / "real")
    folder.symlink_to(folder.parent / "real")


def _link_model(folder: Path) -> None:
    folder.parent.rename(folder.parents[1] / "real")
    folder.parent.symlink_to(folder.parents[1] / "real")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_link_file, "weights is a symbolic link"),
        (_link_folder, "1 is a symbolic link"),
        (_link_model, "m is a symbolic link"),
        (lambda folder: (folder / "sub").mkdir(), "sub is a directory"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe is a other"),
        (lambda folder: [(folder / f"f{k}").touch() for k in range(40)], "at most 32"),
    ],
    ids=["link", "linked folder", "linked model", "folder", "pipe", "many"],
)
def test_only_plain_files_are_read(tmp_path: Path, change: Any, words: str) -> None:
    """A link, a folder or a pipe is refused before anything is opened."""
    registry = Registry(str(tmp_path))
    registry.upload("m", 1, FILES)
    change(tmp_path / "m" / "1")
    with pytest.raises(Unsafe, match=words):
        registry.fetch("m", 1)


def _link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"w")
    path.symlink_to(path.with_name("elsewhere"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))  # an address has at most 107 bytes


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        (os.mkfifo, "weights is no plain file"), (Path.mkdir, "weights is no plain file"),
        (_link, "cannot be read"), (_socket, "cannot be read"),
    ],
    ids=["pipe", "folder", "link", "socket"],
)  # fmt: skip
def test_what_was_swapped_for_no_plain_file_is_not_read(
    tmp_path: Path, monkeypatch: Any, swap: Callable[[Path], None], words: str
) -> None:
    """Between the look and the opening; a pipe without a writer would be waited for for ever."""
    monkeypatch.chdir(tmp_path)
    registry = Registry(str(tmp_path))
    registry.upload("m", 1, FILES)
    path, sizes = tmp_path / "m" / "1" / "weights", registry.sizes("m", 1)
    path.unlink()
    swap(path)
    raised: list[BaseException] = []

    def fetch() -> None:
        try:
            registry.fetch("m", 1, sizes)
        except Unsafe as error:
            raised.append(error)

    before = len(list(Path("/proc/self/fd").iterdir()))
    reading = threading.Thread(target=fetch, daemon=True)
    reading.start()
    reading.join(5.0)
    assert not reading.is_alive()
    assert [words in str(error) for error in raised] == [True]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_sizes_are_bounded(registry: Registry) -> None:
    """A file over its limit is refused as it lies; so is a name without a limit."""
    registry.upload("m", 1, FILES)
    assert registry.sizes("m", 1, dict.fromkeys(FILES, 1)) == {"model.sig": 1, "weights": 1, "a": 0}
    with pytest.raises(Unsafe, match="weights has 1 bytes; at most 0"):
        registry.sizes("m", 1, dict.fromkeys(FILES, 0) | {SIGNATURE: 1})
    with pytest.raises(Unsafe, match="'a' is not a file of a checkpoint"):
        registry.sizes("m", 1, {SIGNATURE: 1, "weights": 1})


def test_a_file_is_hashed_in_pieces(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of it is in memory than one piece, and no more is read than a byte too many."""
    monkeypatch.setattr("nnsec.adapters.registry.CHUNK", 10)
    registry.upload("m", 1, FILES | {"weights": bytes(95)})
    assert registry.digest("m", 1, "weights", 95) == (sha256(bytes(95)).hexdigest(), 95)
    assert registry.digest("m", 1, "weights", 50) == (sha256(bytes(51)).hexdigest(), 51)
    assert registry.fetch("m", 1, {"weights": 50}) == {"weights": bytes(51)}
    assert {len(one) for one in registry._chunks("m", 1, "weights", 95, 10)} == {10, 5}


def test_an_unknown_url_is_a_configuration_error() -> None:
    """A scheme that nothing serves is said at once."""
    with pytest.raises(ConfigError, match="registry"):
        Registry("nosuchscheme://x")


def test_an_object_store_may_list_the_folder_itself(tmp_path: Path, monkeypatch: Any) -> None:
    """Stores keep a marker for a folder, and list it beside what is in it."""
    registry = Registry(str(tmp_path))
    registry.upload("m", 1, FILES)
    whole = registry._fs.ls

    def ls(path: str, detail: bool) -> list[Any]:
        return [{"name": f"{path}/", "type": "directory", "size": 0}, *whole(path, detail=detail)]

    monkeypatch.setattr(registry._fs, "ls", ls)
    assert (registry.models(), registry.list("m")) == (("m",), (1,))
    assert registry.fetch("m", 1) == FILES


@pytest.mark.parametrize(("asked", "what"), [("open", "m/1/weights"), ("ls", "m/1")])
def test_a_file_that_cannot_be_read_refuses_its_checkpoint(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, asked: str, what: str
) -> None:
    """No permission for one file is no registry that is away: waiting would not end."""
    registry.upload("m", 1, FILES)
    registry.upload("m", 2, FILES)
    place = registry._files if asked == "open" else registry._fs
    whole = getattr(place, asked)

    def denied(path: str, *args: Any, **options: Any) -> Any:
        if path.endswith(what):
            raise PermissionError(13, "Permission denied", path)
        return whole(path, *args, **options)

    monkeypatch.setattr(place, asked, denied)
    with pytest.raises(Unsafe, match=f"m/1 cannot be read: .*Permission denied.*{what}"):
        registry.fetch("m", 1)
    assert registry.fetch("m", 2) == FILES


@pytest.mark.parametrize(
    ("error", "root"),
    [
        (OSError(116, "Stale file handle"), OSError(116, "Stale file handle")),
        (ConnectionResetError(104, "reset by the store"), None),
        (TimeoutError("no answer"), None),
        (RuntimeError("the store's own"), None),
    ],
    ids=["root", "reset", "silence", "own"],
)
def test_a_registry_that_goes_away_while_it_is_read_is_waited_for(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, error: Exception, root: Exception | None
) -> None:
    """What the root raises too, or a connection does, may pass: nothing is refused for it."""
    registry.upload("m", 1, FILES)
    whole = registry._fs.ls

    def broken(*args: Any, **options: Any) -> Any:
        raise error

    def ls(path: str, *args: Any, **options: Any) -> Any:
        if root is not None and path == registry._root:
            raise root
        return whole(path, *args, **options)

    monkeypatch.setattr(registry._files, "open", broken)
    monkeypatch.setattr(registry._fs, "ls", ls)
    with pytest.raises(TransientError, match=str(error.args[-1])):
        registry.fetch("m", 1)
