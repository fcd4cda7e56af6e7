"""Alerts about partitions that cannot be read on: part of what was sent is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID, uuid5

from nnsec.adapters.clients import bare_name, topic_name
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from schemas.alert import Alert, Subject
from schemas.base import from_millis
from schemas.headers import event_headers
from schemas.threats import atlas
from streams.stops import Stop


def alerts(
    settings: Settings, logs: Mapping[str, UUID], role: str, stop: Stop, now: float
) -> list[Out]:
    """One alert for each model, as any of them may have records in the partition.

    Parameters
    ----------
    logs:
        Topic, without the prefix, to the identity of its log.
    role:
        Whose group stands still.
    now:
        Seconds since 1970.
    """
    topic = bare_name(settings, stop.topic)
    place = (topic, stop.partition, stop.offset, 0)
    found = []
    for model in settings.models:
        name = f"integrity/{role}/{model}/{topic}/{stop.partition}/{stop.offset}/{stop.since}"
        episode = uuid5(logs[topic], name)
        alert = Alert(
            id=uuid5(episode, str(stop.told)), episode=episode, seq=stop.told,
            time=from_millis(int(now * 1000)), model=model, model_version="",
            threat="integrity", atlas=atlas("integrity"), severity="high", evidence=1.0,
            subject=Subject(kind="model", id=model), positions=(place,),
            counts={"offset": stop.offset, "first": stop.first, "end": stop.end},
            explanation=(
                f"{role} has stopped reading {stop.topic}/{stop.partition}: {stop}. What {model} "
                "has in this partition is not looked at until somebody resets the offset of group "
                f"{topic_name(settings, role)} on purpose"
            ),
        )  # fmt: skip
        headers = event_headers("alert", id=str(alert.id), source_role=role, time=alert.time)
        found.append(Out("alerts", alert.encode(), model.encode(), headers))
    return found
