"""The configuration: defaults, the file, variables over it, and errors that say what is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from nnsec import settings
from nnsec.errors import ConfigError
from nnsec.settings import Settings, load, parse
from schemas.outcome import MAX_ROWS, MOST_ROWS

MODEL = {"architecture": "a:b", "input": {"shape": [1, 8, 8]}}


def tables(table: type[BaseModel]) -> list[tuple[str, Any]]:
    """Every key of a table and of the tables inside it."""
    found = []
    for name, field in table.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found.extend((f"{name}.{key}", one) for key, one in tables(inner))
        found.append((name, field))
    return found


def test_nothing_at_all_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file and variables every table takes its defaults."""
    monkeypatch.chdir(tmp_path)
    assert load(environ={}) == Settings()


def test_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument outranks NNSEC_CONFIG, which outranks ./nnsec.toml."""
    monkeypatch.chdir(tmp_path)
    for name in ("nnsec.toml", "variable.toml", "argument.toml"):
        (tmp_path / name).write_text(f"[kafka]\nprefix = '{name}'\n")
    environ = {"NNSEC_CONFIG": "variable.toml"}
    assert load(environ={}).kafka.prefix == "nnsec.toml"
    assert load(environ=environ).kafka.prefix == "variable.toml"
    assert load("argument.toml", environ).kafka.prefix == "argument.toml"


def test_variables_outrank_the_file(tmp_path: Path) -> None:
    """Values are TOML, or text where they are none; tables are made on the way."""
    file = tmp_path / "c.toml"
    file.write_text("[kafka]\nprefix = 'a.'\npartitions = { inputs = 3 }\n")
    found = load(
        file,
        {
            "NNSEC_KAFKA__PREFIX": "b.", "NNSEC_KAFKA__PARTITIONS__CONTROL": "2",
            "NNSEC_KAFKA__DECLARE": "false", "NNSEC_TRUST__RELEASE_KEYS": "['a.pub']",
            "NNSEC_MODELS__DIGITS": "{ architecture = 'a:b', input = { shape = [4] } }",
            "NNSEC_SASL_PASSWORD": "secret", "OTHER__KEY": "x",
        },
    )  # fmt: skip
    assert found.kafka.prefix == "b."
    assert (found.kafka.partitions.inputs, found.kafka.partitions.control) == (3, 2)
    assert found.kafka.declare is False
    assert found.trust.release_keys == ("a.pub",)
    assert found.models["digits"].input.shape == (4,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kafka": {"prefx": "a"}}, "'kafka.prefx'; did you mean 'prefix'"),
        ({"redsi": {}}, "'redsi'; did you mean 'redis'"),
        ({"kafka": {"partitions": {"input": 1}}}, "did you mean 'inputs'"),
        ({"models": {"m": MODEL | {"alfa": 0.1}}}, "'models.m.alfa'; did you mean 'alpha'"),
        ({"models": {"m": {**MODEL, "input": {"shap": [1]}}}}, "did you mean 'shape'"),
        ({"policy": {"drift": {"aproval": "none"}}}, "did you mean 'approval'"),
        ({"models": {"m": {"input": {"shape": [1]}}}}, "models.m.architecture: Field required"),
        ({"models": {"m": {**MODEL, "input": {"shape": [0]}}}}, "models.m.input.shape.0"),
        ({"kafka": {"commit_interval": 0}}, "kafka.commit_interval: .*greater than 0"),
        ({"limits": {"rows": "many"}}, "limits.rows: .*valid integer"),
        ({"limits": {"rows": MOST_ROWS + 1}}, "limits.rows: .*less than or equal to 100000"),
        ({"kafka": {"security_protocol": "TLS"}}, "kafka.security_protocol: .*SASL_SSL"),
        ({"kafka": 3}, "kafka: .*dictionary or instance of Kafka"),
        ({"models": {"m": {"x": {"y": {}}}}}, "'models.m.x'"),
    ],
)
def test_a_wrong_key_or_value_is_named(values: dict[str, Any], message: str) -> None:
    """The message names the key, and the nearest known one where the key is unknown."""
    with pytest.raises(ConfigError, match=message):
        parse(values)


def test_as_many_rows_are_allowed_as_are_read_again() -> None:
    """Of what the screens made of them; and by default as many as are read by default."""
    assert parse({"limits": {"rows": MOST_ROWS}}).limits.rows == MOST_ROWS
    assert parse({}).limits.rows == MAX_ROWS


def test_all_faults_are_told_at_once() -> None:
    """Nobody has to run a command three times to find three errors."""
    with pytest.raises(ConfigError) as caught:
        parse({"kafka": {"prefx": "a", "max_batch": 0}, "budgt": {}})
    assert all(word in str(caught.value) for word in ("prefx", "max_batch", "budgt"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NNSEC_KAFKA_PREFIX", "a.", "NNSEC_KAFKA__PREFIX"),
        ("NNSEC_KAFKA__PREFX", "a.", "did you mean 'prefix'"),
        ("NNSEC_KAFKA__PREFIX__MORE", "a.", "prefix is a value, not a table"),
        ("NNSEC_NOTHING__HERE", "a.", "unknown key 'nothing'"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, message: str, tmp_path: Path) -> None:
    """A variable that would silently do nothing is an error."""
    file = tmp_path / "c.toml"
    file.write_text("[kafka]\nprefix = 'a.'\n")
    with pytest.raises(ConfigError, match=message):
        load(file, {name: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no configuration file .*--config"),
        (b"[kafka", "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    """Missing, no TOML, no UTF-8: the message names the file."""
    file = tmp_path / "c.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file, {})
    assert str(file) in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    """What cannot be read for another reason is named too."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, {})


def test_settings_cannot_be_changed() -> None:
    """What was read holds for the life of the process."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().kafka.prefix = "x"  # type: ignore[misc]


def test_every_key_says_what_it_means() -> None:
    """The documentation is made of these sentences, so none may be missing."""
    silent = [
        name for name, field in tables(Settings)
        if not field.description and "." in name and not isinstance(field.default, BaseModel)
    ]  # fmt: skip
    assert silent == []
    for table in (settings.ModelTable, settings.PolicyTable):
        assert [n for n, field in table.model_fields.items() if not field.description] == []
