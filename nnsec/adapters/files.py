"""A file system anywhere: what it holds, its errors as ours, and no secret of its address shown."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nnsec.addresses import secrets, shown
from nnsec.errors import ConfigError, NNSecError, TransientError, Unsafe


class Files:
    """The files below an address.

    Parameters
    ----------
    url:
        A path or an fsspec URL. As an attribute without user, password and query, which no message
        shows either.

    Raises
    ------
    ConfigError
        If no installed package serves such a URL.
    TransientError
        If it is away; some connect at once.
    """

    def __init__(self, url: str) -> None:
        self.url, self._secrets = shown(url), secrets(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            # One cut at a wrong place shows a part of the password as its port.
            why = "" if self._secrets and isinstance(error, ValueError) else f": {error}"
            raise ConfigError(
                self.cleaned(f"[registry] url = {self.url!r} cannot be used{why}")
            ) from None
        except Exception as error:
            raise self._away(self.url, error) from error
        if isinstance(self.fs, LocalFileSystem):
            self.url, self._secrets = url, ()  # a path, in which @ and ? are as other letters

    def entries(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and facts of all that a folder holds; nothing where there is none."""
        self.fs.invalidate_cache()  # other machines write here too
        try:
            found = self.fs.ls(path, detail=True)
        except FileNotFoundError:
            return
        for info in found:
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            if str(info["name"]).rstrip("/") != path.rstrip("/"):  # object stores list the folder
                yield name, info

    def open(self, path: str) -> Any:
        """A file of bytes to read.

        Raises
        ------
        Unsafe
            If it is a pipe, a device or a folder. It may have been swapped since it was looked at,
            and whoever opens a pipe waits until somebody writes into it.
        OSError
            If it cannot be opened, or is a link; and whatever else the file system raises.
        """
        if not isinstance(self.fs, LocalFileSystem):
            return self.fs.open(path, "rb", cache_type="none")
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.fdopen(number, "rb")
        os.close(number)
        raise Unsafe(f"{path} is no plain file; checkpoints hold plain files only")

    def chunks(self, path: str, most: int, chunk: int) -> Iterator[bytes]:
        """The first bytes of a file, piece by piece; bounded, as it may grow meanwhile."""
        with self.open(path) as file:
            while most and (content := file.read(min(chunk, most))):
                most -= len(content)
                yield content

    @contextlib.contextmanager
    def reading(self, folder: str) -> Iterator[None]:
        """As `reaching`, but what only one checkpoint's files raise refuses that checkpoint.

        One file without permission would hold up all that looks at the model's versions for ever.
        """
        with self.reaching(folder):
            try:
                yield
            except (ConnectionError, TimeoutError):
                raise
            except OSError as error:
                self.fs.invalidate_cache()
                self.fs.ls(self.root, detail=False)  # raises if the registry itself is away
                raise Unsafe(self.cleaned(f"{folder} cannot be read: {error}")) from error

    @contextlib.contextmanager
    def reaching(self, what: str) -> Iterator[None]:
        """Turn whatever a file system raises into one error that may pass."""
        try:
            yield
        except NNSecError:
            raise
        except Exception as error:
            # Each fsspec backend raises errors of its own, so all of them are meant.
            raise self._away(what, error) from error

    def cleaned(self, text: str) -> str:
        """A text without the secrets of the address, which some systems keep in their paths."""
        for secret in self._secrets:
            text = text.replace(secret, "")
        return text

    def _away(self, what: str, error: Exception) -> TransientError:
        return TransientError(self.cleaned(f"the registry cannot be reached at {what}: {error}"))
