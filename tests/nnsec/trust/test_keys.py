"""Keys: what is written, what is refused, and that ids can be computed by anyone."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nnsec.errors import ConfigError
from nnsec.trust import keys


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[bytes, bytes]:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def test_a_pair_is_written_and_read(tmp_path: Path) -> None:
    """What the private file signs, the public file verifies; only the owner may read the secret."""
    path = tmp_path / "folder" / "release.pem"
    made = keys.write_new(path)
    private, public = keys.load_private(path), keys.load_public(f"{path}.pub")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private.id == public.id == keys.key_id(made) == keys.key_id(public)
    assert public.id == hashlib.sha256(Path(f"{path}.pub").read_bytes()).hexdigest()
    assert public.verifies(private.sign(b"message"), b"message")
    assert not public.verifies(private.sign(b"message"), b"massage")


@pytest.mark.parametrize("name", ["release.pem", "release.pem.pub"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    """An existing file of either name stays as it is."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=f"{name} exists"):
        keys.write_new(tmp_path / "release.pem")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    """A link that waits for the key does not get it."""
    (tmp_path / "release.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists"):
        keys.write_new(tmp_path / "release.pem")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is a clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        keys.write_new(tmp_path / "file" / "release.pem")


def test_a_secret_does_not_show() -> None:
    """A private key in a log line is its id."""
    key = keys.generate()
    assert repr(key) == f"PrivateKey(public=PublicKey(id='{key.id}'))"
    assert keys.load_private(key.pem()).id == key.id
    assert keys.load_public(key.public.pem()) == key.public


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a p"),
        (b"no key at all", "not a p"),
        (b"x" * 20_000, "longer than"),
        (_pem(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (_pem(ed25519.Ed25519PrivateKey.generate()), "P-256"),
    ],
    ids=["empty", "garbage", "long", "p384", "ed25519"],
)
def test_what_is_no_p256_key_is_refused(
    tmp_path: Path, content: bytes | tuple[bytes, bytes], words: str
) -> None:
    """Other curves, other files and garbage are named in the error."""
    private, public = content if isinstance(content, tuple) else (content, content)
    for load, pem in ((keys.load_private, private), (keys.load_public, public)):
        file = tmp_path / "key.pem"
        file.write_bytes(pem)
        with pytest.raises(ConfigError, match=words) as caught:
            load(file)
        assert "key.pem" in str(caught.value)


def test_the_wrong_half_is_pointed_out(tmp_path: Path) -> None:
    """A private key where a public one is wanted is a frequent mistake."""
    keys.write_new(tmp_path / "k")
    with pytest.raises(ConfigError, match=r"name the \.pub file"):
        keys.load_public(tmp_path / "k")
    with pytest.raises(ConfigError, match="not a private key"):
        keys.load_private(tmp_path / "k.pub")
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load_private(tmp_path / "missing")
