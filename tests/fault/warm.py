"""What every process of ours imports, imported once: `tests.fault.plant` forks from here."""

from __future__ import annotations

from importlib import import_module

from nnsec import detectors
from nnsec.poisoning import discovery
from streams.roles import ROLES

for _name in (
    "faust", "redis.asyncio", "nnsec.checkpoints", "streams.runtime", "workers.cli",
    "workers.remediation", "workers.view", *(where.partition(":")[0] for where in ROLES.values()),
):  # fmt: skip
    import_module(_name)
detectors.found()
discovery.found()
