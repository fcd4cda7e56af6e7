"""The registry: ``<url>/<model>/<version>/``, a folder by default or any fsspec URL."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from nnsec.adapters.files import Files
from nnsec.errors import BadSignature, ConfigError, TransientError, Unsafe

SIGNATURE = "model.sig"
MAX_FILES = 32
MAX_BYTES = 8 * 1024**3
"""Bytes of the largest file that is read."""
CHUNK = 16 * 1024**2
"""Bytes of a file that are in memory while it is hashed without being kept."""
MAX_VERSION = 999_999_999
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class Registry:
    """Reads and writes checkpoints as named bytes; it judges none of them.

    Parameters
    ----------
    url:
        A path or an fsspec URL, for example ``s3://bucket/folder`` (needs its own package). As an
        attribute without its secrets.

    Raises
    ------
    ConfigError, TransientError
        As `Files`.
    """

    def __init__(self, url: str) -> None:
        self._files = Files(url)
        self._fs, self._root, self.url = self._files.fs, self._files.root, self._files.url
        self._entries = self._files.entries

    def models(self) -> tuple[str, ...]:
        """Names of the models that have a folder, sorted."""
        with self._files.reaching(self._root):
            names = [
                name
                for name, info in self._entries(self._root)
                if info["type"] == "directory" and not info.get("islink")
            ]
        return tuple(sorted(name for name in names if _MODEL.fullmatch(name)))

    def list(self, model: str) -> tuple[int, ...]:
        """Versions that have a signature, in ascending order; the others are no checkpoints."""
        with self._files.reaching(self._folder(model)):
            return tuple(
                version
                for version in self._folders(model)
                if self._fs.exists(f"{self._folder(model, version)}/{SIGNATURE}")
            )

    def next_version(self, model: str, above: int | None = None) -> int:
        """The first version above another that has no folder yet.

        Parameters
        ----------
        above:
            The newest that counts; None for the newest with a signature, whoever made it.
        """
        newest = max(self.list(model), default=0) if above is None else above
        with self._files.reaching(self._folder(model)):
            taken = frozenset(self._folders(model))
        return next(version for version in itertools.count(newest + 1) if version not in taken)

    def check_free(self, model: str, version: int) -> None:
        """Refuse a version that exists, before work is put into one that could not be written.

        Raises
        ------
        ConfigError
            If that version has a folder already.
        TransientError
            If the registry is away.
        """
        with self._files.reaching(folder := self._folder(model, version)):
            if self._fs.exists(folder):
                self._taken(model, version)

    def sizes(
        self, model: str, version: int, limits: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Look at every file of a version, and read none.

        Parameters
        ----------
        limits:
            Most bytes by file name; other names are refused. None for any name and `MAX_BYTES`.

        Returns
        -------
        dict
            Bytes by file name.

        Raises
        ------
        BadSignature
            If there is no such folder: nothing signed is there.
        Unsafe
            For a link, a folder or anything else that is no plain file; too many or too large;
            also if one cannot be read while the registry itself can.
        TransientError
            If the registry is away.
        """
        folder = self._folder(model, version)
        with self._files.reading(folder):
            if not self._fs.exists(folder):
                self._missing(model, version)
            for path in (self._folder(model), folder):
                if self._fs.info(path).get("islink"):
                    raise Unsafe(f"{path} is a symbolic link; checkpoints are plain folders")
            found = {name: self._size(name, info, limits) for name, info in self._entries(folder)}
        if len(found) > MAX_FILES:
            text = f"{folder} holds {len(found)} files; a checkpoint has at most {MAX_FILES}"
            raise Unsafe(self._files.cleaned(text))
        return found

    def fetch(
        self, model: str, version: int, sizes: Mapping[str, int] | None = None
    ) -> dict[str, bytes]:
        """Read files of a version, each once; raises as `sizes`.

        Parameters
        ----------
        sizes:
            Which files, and the bytes of each; None for all, as `sizes` finds them.

        Returns
        -------
        dict
            Content by file name, unverified; of one that grew a byte too many, so that it differs.
        """
        if sizes is None:
            sizes = self.sizes(model, version)
        return {
            name: b"".join(self._chunks(model, version, name, size + 1, size + 1))
            for name, size in sizes.items()
        }

    def digest(self, model: str, version: int, name: str, size: int) -> tuple[str, int]:
        """Hash a file of so many bytes piece by piece, and keep none of it; raises as `fetch`.

        Returns
        -------
        tuple
            SHA-256 in hex, and how many bytes it is of.
        """
        digest, read = hashlib.sha256(), 0
        for chunk in self._chunks(model, version, name, size + 1, CHUNK):
            digest.update(chunk)
            read += len(chunk)
        return digest.hexdigest(), read

    def upload(self, model: str, version: int, files: Mapping[str, bytes]) -> str:
        """Write a version, the signature last, so that nobody ever sees half a checkpoint.

        Returns
        -------
        str
            Where it lies.

        Raises
        ------
        ConfigError
            If that version has a folder already; nothing is overwritten.
        TransientError
            If the registry is away; what was written without a signature is no checkpoint.
        """
        folder = self._folder(model, version)
        with self._files.reaching(folder):
            self._fs.makedirs(self._folder(model), exist_ok=True)
            if not self._make(folder):
                self._taken(model, version)
            for name in sorted(files, key=lambda name: (name == SIGNATURE, name)):
                self._fs.pipe_file(f"{folder}/{name}", files[name])
        return self._files.cleaned(folder)

    def _folder(self, model: str, version: int | None = None) -> str:
        if not _MODEL.fullmatch(model):
            raise ConfigError(
                f"model name {model!r}: letters, digits, '.', '_' and '-' only, 128 at most, "
                "beginning with a letter or digit"
            )
        if version is not None and not 1 <= version <= MAX_VERSION:
            raise ConfigError(
                f"version {version}: versions are whole numbers from 1 to {MAX_VERSION}; "
                f"if one near the end is no checkpoint, remove its folder from {self.url}"
            )
        return f"{self._root}/{model}" + ("" if version is None else f"/{version}")

    def _folders(self, model: str) -> Sequence[int]:
        return sorted(
            int(name) for name, _ in self._entries(self._folder(model)) if _VERSION.fullmatch(name)
        )

    def _size(self, name: str, info: Mapping[str, Any], limits: Mapping[str, int] | None) -> int:
        """Bytes of a file that may be read."""
        if limits is not None and name not in limits:
            raise Unsafe(f"{name[:200]!r} is not a file of a checkpoint; remove it")
        limit = MAX_BYTES if limits is None else limits[name]
        if info.get("islink"):
            raise Unsafe(f"{name} is a symbolic link; checkpoints hold plain files only")
        if info["type"] != "file":
            raise Unsafe(f"{name} is a {info['type']}; checkpoints hold plain files only")
        size = info["size"]
        if size is None:  # some stores tell it only of one file at a time
            size = self._fs.info(info["name"])["size"]
        if size is None:
            raise Unsafe(f"the store does not tell how many bytes {name} has")
        if size > limit:
            raise Unsafe(f"{name} has {size} bytes; at most {limit} are read")
        return int(size)

    def _chunks(
        self, model: str, version: int, name: str, most: int, chunk: int
    ) -> Iterator[bytes]:
        folder = self._folder(model, version)
        with self._files.reading(folder):
            yield from self._files.chunks(f"{folder}/{name}", most, chunk)

    def _make(self, folder: str) -> bool:
        """Make a folder; False if it exists."""
        if self._fs.exists(folder):
            return False
        try:
            # On a file system the folder is the lock: only one of two writers makes it.
            self._fs.mkdir(folder, create_parents=False)
        except FileExistsError:
            return False
        return True

    def _taken(self, model: str, version: int) -> NoReturn:
        raise ConfigError(
            f"{model}/{version} exists in {self.url}; versions are never overwritten, "
            f"the next free one is {self.next_version(model)}"
        )

    def _missing(self, model: str, version: int) -> NoReturn:
        if not self._fs.exists(self._root):
            raise TransientError(f"the registry {self.url} is not there")
        there = ", ".join(map(str, self._folders(model))) or "none"
        raise BadSignature(f"no checkpoint {model}/{version} in {self.url}; there: {there}")
