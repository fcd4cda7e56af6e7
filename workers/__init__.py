"""Processes around the streams: remediation, view, trainer, embedded services, command line."""
