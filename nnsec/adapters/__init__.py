"""The I/O that streams and workers share: Kafka, registry, HTTP probes."""
