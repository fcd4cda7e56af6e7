"""``model.sig``: all files of a checkpoint signed as one, in the OpenSSF Model Signing format.

The format is a Sigstore bundle around a DSSE envelope around an in-toto statement that lists the
SHA-256 of every file (github.com/sigstore/model-transparency). ``model_signing verify key``
accepts what `sign` makes, and `verify` accepts what ``model_signing sign key`` makes.

Here it works on bytes in memory, so that exactly what was verified is used afterwards. It is also
stricter: a bundle has one spelling, so that a change of any byte of ``model.sig`` is refused too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnsec.adapters.registry import SIGNATURE
from nnsec.errors import BadSignature, DigestMismatch, SchemaError, Unsafe
from nnsec.trust import dsse
from nnsec.trust.keys import PrivateKey, PublicKey
from schemas import strict_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Signed:
    """What a valid signature says.

    Parameters
    ----------
    digest:
        SHA-256 of the signed payload bytes in hex: the digest of the checkpoint.
    key_id:
        Which trusted key signed.
    files:
        SHA-256 in hex by file name.
    """

    digest: str
    key_id: str
    files: Mapping[str, str]


def sign(name: str, files: Mapping[str, bytes], key: PrivateKey) -> bytes:
    """Sign files as a whole.

    Parameters
    ----------
    name:
        What the statement is about; shown only, the name that binds is in the manifest.
    files:
        Content by plain file name, without ``model.sig``.

    Returns
    -------
    bytes
        The content of ``model.sig``.
    """
    digests = {item: hashlib.sha256(files[item]).hexdigest() for item in sorted(files)}
    for item in digests:
        check_name(item)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(digests)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [
                {"name": item, "algorithm": "sha256", "digest": digest}
                for item, digest in digests.items()
            ],
        },
    }
    payload = json.dumps(statement, separators=(",", ":")).encode()
    return _bundle(payload, key.sign(dsse.encode(PAYLOAD_TYPE, payload)), key.id)


def verify(
    files: Mapping[str, bytes],
    keys: Sequence[PublicKey],
    *,
    names: Collection[str] | None = None,
) -> Signed:
    """Check that exactly these files were signed by a trusted key.

    Parameters
    ----------
    files:
        Content by file name, ``model.sig`` among them; hostile.
    keys:
        The trusted release keys.
    names:
        All files of the folder, where only some were read yet: of the others the names are checked
        and nothing else. None where `files` are all of them.

    Raises
    ------
    BadSignature
        If ``model.sig`` is missing, malformed or not of a trusted key.
    DigestMismatch
        Naming the first file that is missing or differs.
    Unsafe
        Naming a file that was not signed, or whose name leaves the folder.
    """
    there = set(files if names is None else names)
    for name in sorted(there):
        check_name(name)
    if SIGNATURE not in files:
        raise BadSignature(f"{SIGNATURE} is missing: a folder without it is no checkpoint")
    payload, key_id = _open(files[SIGNATURE], keys)
    signed = _statement(payload)
    for name in sorted(there - signed.keys() - {SIGNATURE}):
        raise Unsafe(f"{name} is not among the signed files; remove it")
    for name in sorted(signed):
        if name not in there:
            raise DigestMismatch(f"{name} is missing, but was signed")
        if name in files and hashlib.sha256(files[name]).hexdigest() != signed[name]:
            raise DigestMismatch(f"{name} differs from what was signed")
    return Signed(hashlib.sha256(payload).hexdigest(), key_id, signed)


def check_name(name: str) -> None:
    """Refuse a file name that could lead out of the folder.

    Raises
    ------
    Unsafe
        For separators, ``..``, a leading dot, or anything beyond plain ASCII.
    """
    if not _NAME.fullmatch(name):
        raise Unsafe(f"{name[:200]!r} is no plain file name")


def _bundle(payload: bytes, signature: bytes, hint: str) -> bytes:
    """The one spelling of a bundle, that of model-signing 1.1."""
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def _open(content: bytes, keys: Sequence[PublicKey]) -> tuple[bytes, str]:
    """Payload and key id of a bundle that a trusted key signed."""
    try:
        bundle = strict_json.loads(content, limit=dsse.MAX_BYTES)
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True)
        signature = base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"], validate=True)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        same = isinstance(hint, str) and _bundle(payload, signature, hint) == content
    except (SchemaError, KeyError, IndexError, TypeError, ValueError) as error:
        raise BadSignature(f"{SIGNATURE} is no signature bundle: {error}") from error
    if not same:
        raise BadSignature(f"{SIGNATURE} is not written as a signature bundle is")
    if len(signature) > dsse.MAX_SIGNATURE:
        raise BadSignature(f"{SIGNATURE} holds a signature of {len(signature)} bytes")
    for key in keys:
        if hint == key.id and key.verifies(signature, dsse.encode(PAYLOAD_TYPE, payload)):
            return payload, key.id
    if any(hint == key.id for key in keys):
        raise BadSignature(f"{SIGNATURE} does not fit its content: it was changed")
    raise BadSignature(
        f"{SIGNATURE} is of key {hint[:16]!r}…, which is not among the {len(keys)} trusted; "
        "see [trust] release_keys"
    )


def _statement(payload: bytes) -> dict[str, str]:
    """The signed digests by file name."""
    try:
        return _digests(strict_json.loads(payload, limit=dsse.MAX_BYTES))
    except (SchemaError, KeyError, TypeError, ValueError) as error:
        raise BadSignature(f"{SIGNATURE} signs no list of files: {error}") from error


def _digests(statement: dict[str, Any]) -> dict[str, str]:
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
        msg = f"a statement of type {statement['predicateType']!r}"
        raise ValueError(msg)
    serialization = statement["predicate"]["serialization"]
    if serialization["method"] != "files" or serialization["hash_type"] != "sha256":
        msg = "only whole files under SHA-256 are read"
        raise ValueError(msg)
    found: dict[str, str] = {}
    for item in statement["predicate"]["resources"]:
        check_name(item["name"])
        if item["algorithm"] != "sha256" or not _SHA256.fullmatch(item["digest"]):
            msg = f"no SHA-256 for {item['name']}"
            raise ValueError(msg)
        found[item["name"]] = item["digest"]
    subjects = statement["subject"]
    if len(subjects) != 1 or subjects[0]["digest"] != {"sha256": _root(found)}:
        msg = "the root digest is not that of the files"
        raise ValueError(msg)
    if len(found) != len(statement["predicate"]["resources"]) or SIGNATURE in found:
        msg = "a file is listed twice, or the signature itself is"
        raise ValueError(msg)
    return found


def _root(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
