"""Signatures of bundles: Ed25519 (RFC 8032) over an in-toto statement in a DSSE envelope, in a file beside the bundle.

The envelope (secure-systems-lab/dsse, protocol 1.0.2) says what kind of text was signed, so that a signature for one
kind never passes for another. The statement (in-toto attestation, `_type` v1) names the bundle by the sha256 of the
whole file. Bundles stay as they are: their own digest covers every byte before it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import IntegrityError, UsageError
from edgekit.extras import require
from edgekit.report.report import write_bytes
from edgekit.sealed import shortened
from edgekit.units import source_date

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX = ".sig"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://edgekit-toolchain.invalid/bundle-signature/v1"
"""Names the kind of statement. It is no address: nothing is fetched from it."""

PASSPHRASE = "EDGEKIT_KEY_PASSPHRASE"
LOCKED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
MAKE = "Make a pair with `edgekit bundle keygen`."

LARGEST = 64 << 10
"""Bytes of a signature or key file."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Signature(_Value):
    keyid: str = Field(max_length=200)
    sig: str = Field(max_length=200)


class _Envelope(_Value):
    """A DSSE envelope as JSON."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: tuple[_Signature, ...] = Field(min_length=1, max_length=16)


class _Digest(_Value):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Subject(_Value):
    name: str
    digest: _Digest


class _Predicate(_Value):
    """`seal`: the digest in the bundle's last bytes; `manifest`: sha256 of its `manifest.json`."""

    seal: str
    manifest: str
    created: str


class _Statement(_Value):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject, ...] = Field(min_length=1, max_length=1)
    predicate_type: Literal["https://edgekit-toolchain.invalid/bundle-signature/v1"] = Field(alias="predicateType")
    predicate: _Predicate


@dataclass(frozen=True)
class Signer:
    """Who signed a bundle: the key's id, the file it was read from, and when, as the signer's clock had it."""

    key_id: str
    key: Path
    created: str


def signature_path(bundle: Path) -> Path:
    """Where the signature of a bundle lies: `X.edge.sig` beside `X.edge`."""
    return bundle.with_name(bundle.name + SUFFIX)


def generate(private: Path, public: Path, passphrase: bytes | None = None) -> str:
    """Write a new key pair as PEM: the private key (PKCS #8) with mode 0600, encrypted where there is a passphrase.

    Returns:
        The key's id: sha256 of the public key as DER (SubjectPublicKeyInfo).

    Raises:
        UsageError: one of the files is there already, or cannot be written.
        MissingDependencyError: `cryptography` is not installed.
    """
    _library()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secrecy = form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, secrecy)
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    for path in (private, public):
        if path.exists():
            raise UsageError(f"{path} is there already: a key is never overwritten. Choose another name")
    _write_new(private, secret, 0o600)
    _write_new(public, shown, 0o644)
    return key_id(key.public_key())


def key_id(key: Ed25519PublicKey) -> str:
    """sha256 of the public key as DER, SubjectPublicKeyInfo."""
    from cryptography.hazmat.primitives import serialization as form

    der = key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def is_encrypted(private: Path) -> bool:
    """Whether a private key file asks for a passphrase (RFC 7468: the label says so).

    Raises:
        UsageError: it cannot be read.
    """
    return LOCKED in _read(private, "private key")


def load_private(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """A private key from a PEM file.

    Raises:
        UsageError: the file cannot be read, holds no Ed25519 private key, or the passphrase is missing or wrong.
        MissingDependencyError: `cryptography` is not installed.
    """
    content = _read(path, "private key")
    _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    locked = LOCKED in content
    if locked and not passphrase:
        raise UsageError(f"{path}: the private key is encrypted. Give its passphrase in {PASSPHRASE}")
    try:
        key = load_pem_private_key(content, passphrase if locked else None)
    except Exception as error:  # ValueError, TypeError and errors of the library's own, by what is wrong with the file
        wrong = "is the passphrase right?" if locked else "it is no private key in PEM."
        raise UsageError(f"{path}: cannot be read as a private key: {wrong} {MAKE}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: it holds a key of another kind than Ed25519. {MAKE}")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """A public key from a PEM file.

    Raises:
        UsageError: the file cannot be read, or does not hold an Ed25519 public key.
        MissingDependencyError: `cryptography` is not installed.
    """
    content = _read(path, "public key")
    _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-----" in content:
        raise UsageError(f"{path}: it is a private key, which stays with who signs. Give the public one")
    try:
        key = load_pem_public_key(content)
    except Exception as error:  # ValueError and errors of the library's own, by what is wrong with the file
        raise UsageError(f"{path}: it is no public key in PEM. {MAKE}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: it holds a key of another kind than Ed25519. {MAKE}")
    return key


def sign(bundle_path: Path, key: Ed25519PrivateKey) -> Path:
    """Sign a bundle, after verifying it whole; an earlier signature is replaced.

    The statement's time is `SOURCE_DATE_EPOCH` where that is set: the same bundle and key then give the same bytes.

    Returns:
        The signature's file, `X.edge.sig` beside the bundle.

    Raises:
        UsageError: there is no such file, or the folder cannot be written.
        IntegrityError: the bundle is damaged or unsafe.
    """
    bundle = open_bundle(bundle_path)
    payload = json.dumps(_statement(bundle), sort_keys=True, separators=(",", ":")).encode()
    signature = key.sign(_authenticated(payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    path = signature_path(bundle.path)
    try:
        write_bytes(path, json.dumps(envelope, indent=1).encode() + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}. Check the folder's permissions") from error
    return path


def check_signature(bundle_path: Path, keys: Sequence[Path]) -> Signer:
    """Who signed a bundle, if it is one of the keys that are trusted.

    The whole file is held against what was signed. Whether it is a sound bundle is told by `open_bundle`; whoever
    signed it with `sign` has asked that.

    Args:
        bundle_path: the `.edge` file; its signature lies beside it.
        keys: public keys, PEM files; any one of them will do.

    Raises:
        IntegrityError: there is no signature, it is not one of these keys', or not of this file.
        UsageError: a key file cannot be used, there are none, or there is no such bundle.
        MissingDependencyError: `cryptography` is not installed.
    """
    if not keys:
        raise UsageError("no public key to check the signature with")
    trusted = [(path, load_public(path)) for path in keys]
    file = signature_path(bundle_path)
    held = _file_sha256(bundle_path)
    if not file.exists():
        raise IntegrityError(f"{bundle_path}: it is not signed: there is no {file.name} beside it")
    envelope, payload = _envelope(file)
    from cryptography.exceptions import InvalidSignature

    for path, key in trusted:
        name = key_id(key)
        for signature in envelope.signatures:
            try:
                key.verify(_decoded(file, signature.sig), _authenticated(payload))
            except InvalidSignature:
                continue
            return Signer(name, path, _signed(file, payload, bundle_path, held).predicate.created)
    named = ", ".join(shortened(signature.keyid) for signature in envelope.signatures)
    wanted = ", ".join(f"{key_id(key)} ({path})" for path, key in trusted)
    raise IntegrityError(
        f"{bundle_path}: its signature is not by a trusted key: it names the key {named}; trusted: {wanted}"
    )


def _library() -> None:
    require("cryptography", extra="sign", why="signing bundles and checking signatures")


def _statement(bundle: Bundle) -> dict[str, Any]:
    created = source_date() or datetime.now(UTC).replace(microsecond=0)
    with zipfile.ZipFile(bundle.path) as archive:
        manifest = hashlib.sha256(archive.read("manifest.json")).hexdigest()
    return {
        "_type": STATEMENT,
        "subject": [{"name": bundle.path.name, "digest": {"sha256": _file_sha256(bundle.path)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "seal": bundle.sha256,
            "manifest": manifest,
            "created": created.isoformat(),
        },
    }


def _authenticated(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding, which holds the payload's type and both lengths."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _envelope(file: Path) -> tuple[_Envelope, bytes]:
    try:
        content = _read(file, "signature")
        envelope = _Envelope.model_validate_json(content)
    except (ValidationError, UsageError) as error:
        raise IntegrityError(f"{file}: it is no signature of a bundle. Sign it again: `edgekit bundle sign`") from error
    return envelope, _decoded(file, envelope.payload)


def _decoded(file: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise IntegrityError(f"{file}: it is no signature of a bundle (not base64)") from error


def _signed(file: Path, payload: bytes, bundle_path: Path, held: str) -> _Statement:
    """The statement, which a trusted key has signed, held against the bundle's file."""
    try:
        statement = _Statement.model_validate_json(payload)
    except ValidationError as error:
        raise IntegrityError(f"{file}: a trusted key signed it, and it is no statement about a bundle") from error
    signed = statement.subject[0].digest.sha256
    if signed != held:
        raise IntegrityError(
            f"{bundle_path}: its signature is of another file: sha256 {signed} was signed, this one is {held}"
        )
    return statement


def _file_sha256(path: Path) -> str:
    if path.is_fifo():
        raise UsageError(f"cannot read the bundle {path}: it is a pipe. Copy it into a file first")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read the bundle {path}: {error.strerror}") from error


def _read(path: Path, what: str) -> bytes:
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot read the {what} {path}: it is no plain file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the {what} {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > LARGEST:
        raise UsageError(f"{path}: it is larger than {LARGEST} bytes: no {what}")
    return content


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that was not there, whole or not at all, never readable for others where `mode` says so."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # with mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(mode)
        os.link(temporary, path)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already: a key is never overwritten. Choose another name") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}. Check the folder's permissions") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
