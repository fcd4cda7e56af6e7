"""Envelopes: what is signed is found again, and nothing else is."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.errors import BadSignature
from nnsec.trust import dsse, keys

KEY, OTHER, STRANGER = keys.generate(), keys.generate(), keys.generate()
TRUSTED = (OTHER.public, KEY.public)
PAYLOAD = b'{"a":1}'
GOOD = dsse.sign(dsse.COMMAND, PAYLOAD, KEY)


def _changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(GOOD) | fields).encode()


def _signature(envelope: bytes, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(envelope)["signatures"][0]
    return found | fields


def test_a_signed_payload_is_found_again() -> None:
    """The payload comes back byte by byte, with the key that signed it."""
    assert dsse.verify(GOOD, dsse.COMMAND, TRUSTED) == dsse.Verified(PAYLOAD, KEY.id)


def test_the_encoding_is_that_of_the_standard() -> None:
    """The example of the DSSE protocol, so that other tools agree on what is signed."""
    assert dsse.encode("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_valid_signature_of_several_is_enough(order: tuple[int, int]) -> None:
    """A stranger's signature beside a trusted one does no harm, whichever comes first."""
    both = [_signature(dsse.sign(dsse.COMMAND, PAYLOAD, STRANGER)), _signature(GOOD)]
    envelope = _changed(signatures=[both[k] for k in order])
    assert dsse.verify(envelope, dsse.COMMAND, TRUSTED).key_id == KEY.id


def test_the_key_id_is_a_hint_only() -> None:
    """Without a key id all trusted keys are tried."""
    bare = _signature(GOOD)
    del bare["keyid"]
    assert dsse.verify(_changed(signatures=[bare]), dsse.COMMAND, TRUSTED).key_id == KEY.id


def _forged() -> bytes:
    """A stranger's signature under a trusted key's id."""
    return _changed(
        signatures=[_signature(dsse.sign(dsse.COMMAND, PAYLOAD, STRANGER), keyid=KEY.id)]
    )


HOSTILE: dict[str, bytes | None] = {
    "no value": None,
    "empty": b"",
    "no json": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"1",
    "deep": b"[" * 100_000,
    "large": b" " * (dsse.MAX_BYTES + 1),
    "duplicate key": GOOD[:-1] + b',"payload":"e30="}',
    "unsigned": _changed(signatures=[]),
    "signatures missing": json.dumps({"payload": "e30=", "payloadType": dsse.COMMAND}).encode(),
    "signatures an object": _changed(signatures={}),
    "signature a string": _changed(signatures=["MEUC"]),
    "signature null": _changed(signatures=[None]),
    "sig missing": _changed(signatures=[{"keyid": KEY.id}]),
    "sig a number": _changed(signatures=[_signature(GOOD, sig=1)]),
    "sig not base64": _changed(signatures=[_signature(GOOD, sig="~~~~")]),
    "sig not ascii": _changed(signatures=[_signature(GOOD, sig="é")]),
    "sig empty": _changed(signatures=[_signature(GOOD, sig="")]),
    "sig huge": _changed(signatures=[_signature(GOOD, sig="QUFB" * 1000)]),
    "sig of zeros": _changed(signatures=[_signature(GOOD, sig="MAYCAQACAQA=")]),
    "keyid a number": _changed(signatures=[_signature(GOOD, keyid=7)]),
    "keyid of another": _changed(signatures=[_signature(GOOD, keyid=OTHER.id)]),
    "too many": _changed(signatures=[_signature(GOOD)] * (dsse.MAX_SIGNATURES + 1)),
    "payload a list": _changed(payload=[]),
    "payload changed": _changed(payload=base64.b64encode(b'{"a":2}').decode()),
    "payload cut": _changed(payload="e"),
    "another type": _changed(payloadType=dsse.MODEL_STATEMENT),
    "type missing": _changed(payloadType=None),
    "signed as another type": dsse.sign(dsse.MODEL_STATEMENT, PAYLOAD, KEY),
    "type swapped after signing": json.dumps(
        json.loads(dsse.sign(dsse.MODEL_STATEMENT, PAYLOAD, KEY)) | {"payloadType": dsse.COMMAND}
    ).encode(),
    "a stranger": dsse.sign(dsse.COMMAND, PAYLOAD, STRANGER),
    "a stranger under a trusted name": _forged(),
}


@pytest.mark.parametrize("envelope", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_envelopes_are_bad_signatures(envelope: bytes | None) -> None:
    """Whatever is wrong, there is one error class and no payload."""
    with pytest.raises(BadSignature):
        dsse.verify(envelope, dsse.COMMAND, TRUSTED)


def test_without_trusted_keys_nothing_is_trusted() -> None:
    """An empty configuration refuses all, and says where keys belong."""
    with pytest.raises(BadSignature, match=r"\[trust\]"):
        dsse.verify(GOOD, dsse.COMMAND, ())


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_flipped_byte_never_changes_the_payload(index: int, mask: int) -> None:
    """A change is refused, or it is outside of what counts and gives the same payload."""
    flipped = bytearray(GOOD)
    flipped[index] ^= mask
    with contextlib.suppress(BadSignature):
        assert dsse.verify(bytes(flipped), dsse.COMMAND, TRUSTED).payload == PAYLOAD
