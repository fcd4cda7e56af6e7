"""Rows to send: read from a file or a known data set, and cut into records."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import ConfigError, SchemaError
from nnsec.settings import ModelTable
from schemas.inference import Expected, check_tensor
from schemas.training import check_labels

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
"""The types of inputs, and their names on the wire."""


@dataclass(frozen=True, slots=True)
class Data:
    """What is to be sent: x (n, *shape), and y (n,) or none."""

    x: NDArray[Any]
    y: NDArray[np.integer] | None

    def labels(self) -> NDArray[np.integer]:
        """The labels, where they are needed.

        Raises
        ------
        ConfigError
            If there are none.
        """
        if self.y is None:
            raise ConfigError("labels are needed: an array y of one whole number for each row")
        return self.y


@dataclass(frozen=True, slots=True)
class Batches:
    """Rows cut into records."""

    rows: int
    size: int

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        for number, start in enumerate(range(0, self.rows, self.size)):
            yield number, slice(start, min(start + self.size, self.rows))


def read(file: Path | None, dataset: str, folder: Path | None, limit: int) -> Data:
    """Read what is to be sent.

    Parameters
    ----------
    limit:
        Most rows; 0 for all.

    Raises
    ------
    ConfigError
        If neither or both are named, or the file is not such.
    """
    if bool(file) == bool(dataset):
        raise ConfigError("name a file (npz with x and y) or --dataset, and not both")
    if file is not None:
        found = _read_file(file)
    else:
        from nnsec import datasets  # scikit-learn takes a second to import

        known = datasets.load(dataset, folder)
        found = Data(known.x, known.y)
    count = limit or len(found.x)
    return Data(found.x[:count], None if found.y is None else found.y[:count])


def fit(data: Data, model: str, table: ModelTable, *, labelled: bool) -> None:
    """Hold rows against what a model takes, as the streams will: each would be a dead letter.

    Parameters
    ----------
    labelled:
        Whether the labels are sent too.

    Raises
    ------
    ConfigError
        If type, shape, a value or a label is none that the model takes.
    """
    takes, classes = table.input, len(table.classes) or None
    expected = Expected(model, takes.shape, takes.dtype, *takes.range)
    try:
        check_tensor(("x", DATATYPES[data.x.dtype.name], data.x), expected)
        if labelled:
            check_labels(data.labels().astype(np.int64), classes, field="y")
    except SchemaError as error:
        raise ConfigError(f"model {model} would refuse this: {error}") from error


def _read_file(file: Path) -> Data:
    wanted = "write an npz file with an array x, and y for labels, with numpy.savez"
    try:
        # Opened here, as numpy leaves a file open that is no zip archive; that is said here too,
        # as numpy advises to load it unsafely then.
        with file.open("rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise ConfigError(f"{file} is no npz file; {wanted}")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as arrays:
                if "x" not in arrays.files:
                    raise ConfigError(f"{file} has no array x; {wanted}")
                x, y = arrays["x"], arrays["y"] if "y" in arrays.files else None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; {wanted}") from error
    except (EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file} is a broken npz file, or holds objects; {wanted}") from error
    if x.ndim < 2 or not len(x) or x.dtype.name not in DATATYPES:
        raise ConfigError(
            f"{file}: x is {x.dtype} {list(x.shape)}; inputs are uint8 or float32, (n, *shape)"
        )
    if y is not None and (y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer)):
        raise ConfigError(f"{file}: y is {y.dtype} {list(y.shape)}; {len(x)} integers are needed")
    return Data(x, y)
