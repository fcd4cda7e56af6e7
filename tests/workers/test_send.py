"""What `nnsec send` sends is what a strict reader reads."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec import datasets
from nnsec.adapters.records import Record
from nnsec.adapters.tail import read_to_end
from nnsec.errors import ConfigError
from nnsec.settings import Limits, Settings, parse
from schemas.inference import Expected, Request, decode_request
from schemas.label import Label
from schemas.training import Sample, decode_sample
from tests.workers.conftest import Nnsec
from workers import data_file
from workers.commands import send

MODELS = {"digits": Expected("digits", (1, 8, 8), "uint8", 0, 16)}

ONE = {"architecture": "nnsec.models:small_cnn", "input": {"shape": [1, 8, 8], "range": [0, 16]}}


@pytest.fixture
def digits(settings: Settings) -> Settings:
    """Settings with the model that the data set is for."""
    return parse(settings.model_dump() | {"models": {"digits": ONE}})


def read(settings: Settings, topic: str) -> list[Record]:
    async def found() -> list[Record]:
        return [record async for record in read_to_end(settings, (topic,))]

    return asyncio.run(found())


def decoded(decode: Any, record: Record) -> Any:
    return decode(
        record.key, record.value, record.headers, partition=record.partition, offset=record.offset,
        models=MODELS, limits=Limits(), default_model="",
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["binary", "json"])
def test_inputs_arrive_as_they_are(encoding: str, nnsec: Nnsec, digits: Settings) -> None:
    """Every row comes once, in order, under the client's name, and the last record is short."""
    done = nnsec(
        "send", "inputs", "--dataset", "digits", "--model", "digits", "--client", "app-7",
        "--batch", "4", "--limit", "10", "--ids", "run", "--encoding", encoding, "--json",
        settings=digits,
    )  # fmt: skip
    assert done.status == 0, done.error
    assert json.loads(done.out) == {
        "rows": 10, "records": 3, "ids": "run", "seconds": json.loads(done.out)["seconds"],
    }  # fmt: skip
    records = read(digits, "inference.inputs")
    requests: list[Request] = [decoded(decode_request, record) for record in records]
    assert [request.id for request in requests] == ["run-0", "run-1", "run-2"]
    assert {request.client for request in requests} == {"app-7"}
    assert {request.encoding for request in requests} == {encoding}
    assert {record.key for record in records} == {b"app-7"}
    sent = np.concatenate([request.x for request in requests])
    np.testing.assert_array_equal(sent, datasets.load("digits").x[:10])


def test_samples_arrive_with_their_labels(nnsec: Nnsec, digits: Settings, tmp_path: Path) -> None:
    """Samples of a file come with their source and labels, the model being the only one."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 17, (7, 1, 8, 8), np.uint8), rng.integers(0, 10, 7)
    np.savez(tmp_path / "new.npz", x=x, y=y)
    done = nnsec(
        "send", "samples", "new.npz", "--source", "camera", "--batch", "7", settings=digits
    )
    assert done.status == 0, done.error
    assert "sent 7 rows in 1 record in" in done.out
    (record,) = read(digits, "training.samples")
    sample: Sample = decoded(decode_sample, record)
    assert (sample.source, record.key) == ("camera", b"camera")
    np.testing.assert_array_equal(sample.x, x)
    np.testing.assert_array_equal(sample.labels, y)


def test_labels_name_the_rows_of_inputs(nnsec: Nnsec, settings: Settings) -> None:
    """With the same --ids and --batch, a label names the record and the row of its input."""
    done = nnsec(
        "send", "labels", "--dataset", "digits", "--ids", "run", "--batch", "4", "--limit", "6",
        "--rate", "1000", settings=settings,
    )  # fmt: skip
    assert done.status == 0, done.error
    records = read(settings, "labels")
    labels = sorted((Label.decode(r.value) for r in records), key=lambda one: (one.id, one.row))
    truth = datasets.load("digits").y[:6].tolist()
    places = [("run-0", 0), ("run-0", 1), ("run-0", 2), ("run-0", 3), ("run-1", 0), ("run-1", 1)]
    assert [(label.id, label.row) for label in labels] == places
    assert [label.label for label in labels] == truth
    assert all((record.key or b"").decode() == Label.decode(record.value).id for record in records)


def test_a_rate_is_kept(nnsec: Nnsec, digits: Settings) -> None:
    """At 100 rows a second, 60 rows take at least 0.5 s."""
    done = nnsec(
        "send", "inputs", "--dataset", "digits", "--model", "digits", "--batch", "2",
        "--limit", "60", "--rate", "100", "--json", settings=digits,
    )  # fmt: skip
    assert done.status == 0, done.error
    assert 0.5 < json.loads(done.out)["seconds"] < 5.0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3, int)}, "has no array x"),
        ({"x": np.zeros((3, 4))}, "float64"),
        ({"x": np.zeros(3, np.uint8)}, "uint8"),
        ({"x": np.zeros((0, 4), np.uint8)}, "uint8"),
        ({"x": np.zeros((3, 4), np.uint8), "y": np.zeros(2, int)}, "3 integers are needed"),
        ({"x": np.zeros((3, 4), np.uint8), "y": np.zeros(3)}, "3 integers are needed"),
        ({"x": np.array([{}], object)}, "or holds objects"),
    ],
)
def test_a_wrong_file_says_what_is_needed(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Missing arrays, wrong types, wrong shapes and pickled objects are each refused."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        data_file.read(tmp_path / "bad.npz", "", None, 0)


def npy() -> bytes:
    np.save(file := io.BytesIO(), np.zeros((3, 4), np.uint8))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text", b"\x93NUMPY", npy()])
def test_what_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    """A file of another kind is a clear error, in our words and not in numpy's."""
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"numpy\.savez") as refused:
        data_file.read(tmp_path / "bad.npz", "", None, 0)
    assert "is no npz file" in str(refused.value)
    assert "pickle" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"numpy\.savez"):
        data_file.read(tmp_path / "missing.npz", "", None, 0)


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    """Data, a model, labels and a known encoding are needed."""
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), np.uint8))
    found = data_file.read(tmp_path / "x.npz", "", None, 2)
    assert found.x.shape == (2, 4)
    with pytest.raises(ConfigError, match="labels are needed"):
        found.labels()
    with pytest.raises(ConfigError, match="not both"):
        data_file.read(None, "", None, 0)
    with pytest.raises(ConfigError, match="not both"):
        data_file.read(tmp_path / "x.npz", "digits", None, 0)
    with pytest.raises(ConfigError, match="configured are: none"):
        send.choose(Settings(), "")
    two = {"models": {"digits": ONE, "d": ONE}}
    assert send.choose(parse(two), "digits") == "digits"
    assert send.choose(parse(two | {"kafka": {"default_model": "d"}}), "") == "d"
    with pytest.raises(ConfigError, match="no model 'digist' is configured"):
        send.choose(parse(two), "digist")


FLOATS = {**ONE, "input": {"shape": [2], "dtype": "float32", "range": [0, 1]}}


@pytest.mark.parametrize(
    ("spec", "x", "y", "said"),
    [
        (ONE, np.zeros((2, 1, 8, 8), np.float32), 0, "takes UINT8, not FP32"),
        (ONE, np.zeros((2, 8, 8), np.uint8), 0, r"takes \[N, 1, 8, 8\]"),
        (ONE, np.full((2, 1, 8, 8), 17, np.uint8), 0, "values from 17 to 17; 0 to 16 are"),
        (FLOATS, np.array([[0, np.nan]], np.float32), 0, "values from nan"),
        (FLOATS, np.array([[0, np.inf]], np.float32), 0, "to inf"),
        ({**ONE, "classes": ["0", "1"]}, np.zeros((2, 1, 8, 8), np.uint8), 2, "labels from 2 to 2"),
    ],
)
def test_what_would_be_a_dead_letter_is_not_sent(
    spec: dict[str, Any], x: np.ndarray[Any, Any], y: int, said: str, nnsec: Nnsec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of another type or shape, with a value or a label that the model does not take."""
    np.savez("new.npz", x=x, y=np.full(len(x), y))
    monkeypatch.setattr(send, "publisher", lambda _: pytest.fail("something was sent"))
    table = parse({"models": {"m": spec}}).models["m"]
    with pytest.raises(ConfigError, match=said):
        data_file.fit(data_file.read(Path("new.npz"), "", None, 0), "m", table, labelled=True)
    given = parse({"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "models": {"m": ONE}})
    done = nnsec("send", "inputs", "new.npz", "--model", "other", settings=given)
    assert "no model 'other' is configured" in str(done.error)
    if spec is ONE:
        for kind in ("inputs", "samples"):
            done = nnsec("send", kind, "new.npz", settings=given)
            assert "model m would refuse this" in str(done.error)


def test_an_unknown_encoding_lists_the_known(nnsec: Nnsec, digits: Settings) -> None:
    """A wrong word is refused before anything is sent."""
    done = nnsec(
        "send", "inputs", "--dataset", "digits", "--encoding", "xml", settings=digits,
    )  # fmt: skip
    assert "binary and json" in str(done.error)
