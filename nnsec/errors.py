"""Every error that nnsec raises.

    NNSecError
    ├── SchemaError          what was read breaks the wire contract (schemas.errors)
    ├── ConfigError          the configuration is wrong; the process exits with 2
    ├── TransientError       may pass: wait and try again
    ├── TrustError           refused, nothing was loaded
    │   ├── BadSignature
    │   ├── DigestMismatch
    │   ├── Expired
    │   ├── RollbackRefused
    │   └── Unsafe
    ├── AuditUnavailable     no durable record, so no action
    └── GuardRefused         a guard of the automation said no

Third-party errors are converted where they enter.
"""

from __future__ import annotations

from schemas.errors import NNSecError, SchemaError


class ConfigError(NNSecError):
    """The configuration is wrong; the message says what to change."""


class TransientError(NNSecError):
    """Something outside is away; the same call may succeed later."""


class TrustError(NNSecError):
    """A checkpoint, statement or command is not to be trusted; nothing of it was used."""


class BadSignature(TrustError):  # noqa: N818 - the name says what it is
    """No signature of a trusted key."""


class DigestMismatch(TrustError):  # noqa: N818
    """A file differs from what was signed; the message names the file."""


class Expired(TrustError):  # noqa: N818
    """Signed, but no longer valid."""


class RollbackRefused(TrustError):  # noqa: N818
    """Older than what was already accepted."""


class Unsafe(TrustError):  # noqa: N818
    """A file or value that is refused whatever its signature says."""


class AuditUnavailable(NNSecError):  # noqa: N818
    """The record of an action could not be made durable."""


class GuardRefused(NNSecError):  # noqa: N818
    """A guard of the automation refused; a person may still act."""


__all__ = [
    "AuditUnavailable", "BadSignature", "ConfigError", "DigestMismatch", "Expired", "GuardRefused",
    "NNSecError", "RollbackRefused", "SchemaError", "TransientError", "TrustError", "Unsafe",
]  # fmt: skip
