"""``nnsec topics``: the topic table, as configured, and its declaration."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from nnsec.adapters.clients import outage
from nnsec.adapters.declaration import declare, partitions
from nnsec.settings import Settings
from schemas.topics import DAY_MS, TOPICS, Topic
from workers.commands.plain import show_tables


def topics(
    context: typer.Context,
    create: Annotated[bool, typer.Option("--declare", help="Make what is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the topics: who writes them, their keys, partitions and how long they are kept."""
    settings: Settings = context.obj
    outage.listen()
    logs = asyncio.run(declare(settings, now=datetime.now(UTC))) if create else {}
    rows: list[dict[str, Any]] = [
        {
            "topic": settings.kafka.prefix + topic.name,
            "writers": list(topic.writers),
            "key": topic.key,
            "partitions": partitions(settings, topic),
            "cleanup": kept(topic),
            "log": str(logs.get(topic.name, "")),
        }
        for topic in TOPICS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("topic", "written by", "key", "partitions", "kept", *(["log"] if create else []))
    for row in rows:
        cells = [row["topic"], ", ".join(row["writers"]), row["key"], str(row["partitions"])]
        table.add_row(*cells, row["cleanup"], *([row["log"]] if create else []))
    show_tables(table)


def kept(topic: Topic) -> str:
    """How long records are kept, in words.

    >>> kept(TOPICS["scores"]), kept(TOPICS["models"]), kept(TOPICS["meta"])
    ('7 d', 'unlimited', 'compact')
    """
    if topic.compact:
        return "compact"
    return "unlimited" if topic.retention_ms < 0 else f"{topic.retention_ms // DAY_MS} d"
