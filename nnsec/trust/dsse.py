"""DSSE: a payload, its type and signatures in one JSON envelope.

The signed bytes are the pre-authentication encoding of type and payload, so an envelope of one
type never passes for another (github.com/secure-systems-lab/dsse, protocol 1.0.2).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnsec.errors import BadSignature
from nnsec.trust.keys import PrivateKey, PublicKey
from schemas import strict_json
from schemas.errors import SchemaError

MODEL_STATEMENT = "application/vnd.nnsec.model-statement+json"
COMMAND = "application/vnd.nnsec.command+json"
MAX_BYTES = 1024 * 1024
MAX_SIGNATURES = 16
MAX_SIGNATURE = 256
"""Bytes; a P-256 signature in DER has at most 72."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A payload that a trusted key signed.

    Parameters
    ----------
    payload:
        The very bytes that were signed.
    key_id:
        Which of the trusted keys it was.
    """

    payload: bytes
    key_id: str


def encode(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: what is signed in fact.

    >>> encode("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: PrivateKey) -> bytes:
    """Put a payload into an envelope with one signature.

    Returns
    -------
    bytes
        UTF-8 JSON without spaces.
    """
    signature = key.sign(encode(payload_type, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key.id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


def verify(envelope: bytes | None, payload_type: str, keys: Sequence[PublicKey]) -> Verified:
    """Open an envelope that at least one trusted key signed.

    Parameters
    ----------
    envelope:
        Hostile bytes, or None for a record without a value.
    payload_type:
        The only type accepted.
    keys:
        The trusted keys; one valid signature of one of them is enough.

    Raises
    ------
    BadSignature
        For everything else, whatever is wrong with it.
    """
    parsed = _parse(envelope)
    found = parsed.get("payloadType")
    if found != payload_type:
        raise BadSignature(f"an envelope of type {str(found)[:100]!r}; {payload_type!r} was wanted")
    payload = _decode(parsed.get("payload"), "payload")
    message = encode(payload_type, payload)
    for name, signature in _signatures(parsed.get("signatures")):
        # The id in an envelope is a hint that nobody signed: without one, every key is tried.
        for key in keys:
            if name in ("", key.id) and key.verifies(signature, message):
                return Verified(payload, key.id)
    trusted = f"{len(keys)} keys are trusted" if keys else "no key is trusted; see [trust]"
    raise BadSignature(f"no signature of a trusted key ({trusted})")


def _parse(envelope: bytes | None) -> dict[str, Any]:
    try:
        parsed = strict_json.loads(envelope, limit=MAX_BYTES)
    except SchemaError as error:
        raise BadSignature(f"not a signed envelope: {error}") from error
    if not isinstance(parsed, dict):
        raise BadSignature("not a signed envelope: no JSON object")
    return parsed


def _decode(text: object, field: str) -> bytes:
    if not isinstance(text, str):
        raise BadSignature(f"not a signed envelope: {field} is no string")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BadSignature(f"not a signed envelope: {field} is not base64") from error


def _signatures(items: object) -> list[tuple[str, bytes]]:
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_SIGNATURES:
        raise BadSignature(f"unsigned: an envelope needs 1 to {MAX_SIGNATURES} signatures")
    found = []
    for item in items:
        name = item.get("keyid", "") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadSignature("not a signed envelope: a signature without a proper keyid")
        signature = _decode(item.get("sig"), "sig")
        if len(signature) <= MAX_SIGNATURE:
            found.append((name, signature))
    return found
