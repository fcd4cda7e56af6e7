"""P-256 keys: made, written, read, and named by an id that anyone can compute."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nnsec.errors import ConfigError

Role = Literal["release", "operator", "audit"]
ROLES: tuple[Role, ...] = get_args(Role)
MAX_BYTES = 16 * 1024
_ALGORITHM = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies.

    Parameters
    ----------
    id:
        SHA-256 of the PEM text, in hex: what ``sha256sum FILE.pub`` prints, and the key hint of
        the OpenSSF Model Signing format.
    """

    id: str
    _key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key's owner signed the message (ECDSA, SHA-256, DER)."""
        try:
            self._key.verify(signature, message, _ALGORITHM)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        """The key as SubjectPublicKeyInfo in PEM."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs; its secret never shows in a repr."""

    public: PublicKey
    _key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """The id of the public half."""
        return self.public.id

    def sign(self, message: bytes) -> bytes:
        """An ECDSA signature over the SHA-256 of the message, in DER."""
        return self._key.sign(message, _ALGORITHM)

    def pem(self) -> bytes:
        """The key as unencrypted PKCS #8 in PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def _public(key: ec.EllipticCurvePublicKey) -> PublicKey:
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return PublicKey(hashlib.sha256(pem).hexdigest(), key)


def generate() -> PrivateKey:
    """Draw a new key from the system's source of randomness."""
    key = ec.generate_private_key(ec.SECP256R1())
    return PrivateKey(_public(key.public_key()), key)


def key_id(key: PublicKey | PrivateKey) -> str:
    """The id under which envelopes and incidents name a key."""
    return key.id


def load_private(source: str | Path | bytes) -> PrivateKey:
    """Read a private key.

    Parameters
    ----------
    source:
        Path of a PEM file, or the PEM text itself as bytes. P-256, without a password.

    Raises
    ------
    ConfigError
        Naming the file, for anything else.
    """
    where, pem = _read(source)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{where} is not a private key in PEM without a password: {error}; "
            "make one with `nnsec keys new`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ConfigError(f"{where} is not a P-256 key; make one with `nnsec keys new`")
    return PrivateKey(_public(key.public_key()), key)


def load_public(source: str | Path | bytes) -> PublicKey:
    """Read a public key.

    Parameters
    ----------
    source:
        Path of a PEM file, or the PEM text itself as bytes.

    Raises
    ------
    ConfigError
        Naming the file, for anything but a public P-256 key.
    """
    where, pem = _read(source)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = "; name the .pub file instead" if b"PRIVATE KEY" in pem else ""
        raise ConfigError(f"{where} is not a public key in PEM: {error}{hint}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ConfigError(f"{where} is not a P-256 key; make one with `nnsec keys new`")
    return _public(key)


def write_new(path: Path) -> PrivateKey:
    """Make a key pair; write ``path`` (mode 0600) and ``path.pub``.

    Raises
    ------
    ConfigError
        If either file exists (nothing is overwritten), or the folder cannot be written.
    """
    key = generate()
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists() or file.is_symlink():
            raise ConfigError(f"{file} exists; choose another name, keys are never overwritten")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, key.pem(), 0o600)
        _write(public, key.public.pem(), 0o644)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return key


def _write(path: Path, content: bytes, mode: int) -> None:
    # O_EXCL: neither an existing file nor a symlink put there meanwhile is ever written to.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _read(source: str | Path | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the key", source
    try:
        with Path(source).open("rb") as file:
            pem = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the key {source} cannot be read: {error.strerror}") from error
    if len(pem) > MAX_BYTES:
        raise ConfigError(f"{source} is longer than {MAX_BYTES} bytes, so it is no key")
    return str(source), pem
