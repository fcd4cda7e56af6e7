"""What each role counts, for ``/metrics``."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter("nnsec_records", "Records read", ["role"])
OUTPUTS = Counter("nnsec_outputs", "Records published", ["role", "topic"])
DEAD_LETTERS = Counter("nnsec_dead_letters", "Records that could not pass", ["role", "error_class"])
RETRIES = Counter("nnsec_retries", "Batches tried again", ["role", "error"])
BATCH_SECONDS = Histogram(
    "nnsec_batch_seconds", "From taking a batch to the acknowledgement of its outputs", ["role"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0),
)  # fmt: skip
BATCH_RECORDS = Histogram(
    "nnsec_batch_records", "Records in a batch", ["role"], buckets=(1, 4, 16, 64, 256, 1024)
)
PARTITIONS = Gauge("nnsec_partitions", "Partitions held", ["role"])
STOPPED = Gauge("nnsec_stopped_partitions", "Partitions whose offset is not in the log", ["role"])


def published(role: str, counts: Mapping[str, int]) -> None:
    """Count records that were acknowledged, by topic."""
    for topic, count in counts.items():
        OUTPUTS.labels(role, topic).inc(count)
