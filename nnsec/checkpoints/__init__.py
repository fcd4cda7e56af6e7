"""Checkpoints: weights, fitted detectors, calibration and provenance as one signed unit."""

from nnsec.checkpoints.creation import Created, create
from nnsec.checkpoints.golden import Golden
from nnsec.checkpoints.loading import Checkpoint, load
from nnsec.checkpoints.manifest import Manifest, Metrics, Parent
from nnsec.checkpoints.provenance import gather
from nnsec.checkpoints.taint import Revoked, newest_clean, revoked_positions, tainted
from nnsec.checkpoints.verification import Survey, survey, verify

__all__ = [
    "Checkpoint", "Created", "Golden", "Manifest", "Metrics", "Parent", "Revoked", "Survey",
    "create", "gather", "load", "newest_clean", "revoked_positions", "survey", "tainted", "verify",
]  # fmt: skip
