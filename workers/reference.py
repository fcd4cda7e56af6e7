"""The generated pages of ``docs/``: command line, configuration, topics.

``make docs`` writes them, and tests hold them against the code, so that they cannot grow old.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nnsec.settings import Settings
from schemas.topics import TOPICS
from workers.commands.topics import kept

_GENERATED = "<!-- Written by `make docs`; a test holds it against the code. -->"
_STATUS = """\
Exit status: 0 if it did what it was told, 2 if the configuration or the command line is wrong, 1
for every other error."""
_FILE = """\
One file, `nnsec.toml`: the one named with `--config`, else by `NNSEC_CONFIG`, else the one in the
working directory. `NNSEC_TABLE__KEY` overrides a key, with two underscores between levels; its
value is TOML, or text if it is not. A key that does not exist is an error that names the nearest
one. Times are in seconds."""
_TOPICS = """\
Every process declares them at its start. `[kafka] prefix` and `[kafka.partitions]` change names and
counts; `nnsec topics` shows what is configured. `nnsec.audit` is reserved: nothing writes it
yet."""


def pages() -> dict[str, str]:
    """Content of the generated pages by file name."""
    return {"cli.md": cli(), "configuration.md": configuration(), "topics.md": topics()}


def cli() -> str:
    """Every command with its arguments and options."""
    from workers.cli import app

    return "\n".join(
        [
            "# Command line", "", _GENERATED, "",
            _STATUS, "",
            *_command("nnsec", typer.main.get_command(app)),
        ]
    )  # fmt: skip


def _command(path: str, command: Any) -> Iterator[str]:
    yield f"## `{path}`"
    yield ""
    yield inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield ""
    rows = [_parameter(one) for one in command.params if one.name != "help"]
    if rows:
        yield from ("| parameter | default | what |", "|---|---|---|", *rows, "")
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{path} {name}", inner)


def _parameter(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    given = parameter.default
    if parameter.required:
        default = "required"
    elif given in (None, "", (), []) or callable(given):
        default = ""
    else:
        default = f"`{given if isinstance(given, str) else json.dumps(given)}`"
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {_cell(parameter.help)} |"


def configuration() -> str:
    """Every table and key of ``nnsec.toml``."""
    lines = [
        "# Configuration", "", _GENERATED, "",
        _FILE, "",
    ]  # fmt: skip
    for name, field in Settings.model_fields.items():
        table, title = _table_of(name, field)
        lines += [f"## `[{title}]`", "", inspect.cleandoc(table.__doc__ or ""), ""]
        lines += ["| key | default | what |", "|---|---|---|", *_keys(table), ""]
    return "\n".join(lines)


def _table_of(name: str, field: FieldInfo) -> tuple[type[BaseModel], str]:
    """The table of a key of the file, which may stand once for each name."""
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return field.annotation, name
    table: type[BaseModel] = get_args(field.annotation)[1]
    return table, f"{name}.{'FAMILY' if name == 'policy' else 'NAME'}"


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else _toml(field.default)
            yield f"| `{prefix}{name}` | {default} | {_cell(field.description)} |"


def _toml(value: Any) -> str:
    """A default as it would be written; nothing where there is none."""
    return "" if value is None else f"`{json.dumps(value)}`"


def _cell(text: str | None) -> str:
    """Text for a cell of a table."""
    return " ".join((text or "").split()).replace("``", "`").replace("|", "\\|")


def topics() -> str:
    """The topic table, with the default prefix and partition counts."""
    kafka = Settings().kafka
    counts = {"inputs": kafka.partitions.inputs, "control": kafka.partitions.control, "one": 1}
    rows = [
        f"| `{kafka.prefix}{topic.name}` | {', '.join(topic.writers)} | {topic.key} "
        f"| {counts[topic.scale]} | {kept(topic)} |"
        for topic in TOPICS.values()
    ]
    return "\n".join(
        [
            "# Topics", "", _GENERATED, "",
            _TOPICS, "",
            "| topic | written by | key | partitions | kept |", "|---|---|---|---|---|", *rows, "",
        ]
    )  # fmt: skip


def main(folder: str) -> None:
    """Write the pages into a folder."""
    for name, text in pages().items():
        (Path(folder) / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
