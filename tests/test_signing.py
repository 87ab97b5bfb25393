"""Signatures of bundles: who signed what, and everything else is refused."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
from pathlib import Path

import agent_bundles as small
import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit import signing
from edgekit.bundle import Bundle
from edgekit.errors import IntegrityError, UsageError
from edgekit.signing import check_signature, generate, load_private, load_public, sign, signature_path


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small.bundle(tmp_path)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    generate(tmp_path / "a.key", tmp_path / "a.pub")
    return tmp_path / "a.key", tmp_path / "a.pub"


def test_a_signed_bundle_names_its_signer(bundle, keys, tmp_path):
    private, public = keys
    file = sign(bundle.path, load_private(private))
    assert file == tmp_path / "small.edge.sig"
    generate(tmp_path / "b.key", tmp_path / "b.pub")
    signer = check_signature(bundle.path, [tmp_path / "b.pub", public])
    assert signer.key == public and signer.key_id == signing.key_id(load_public(public))


def test_the_private_key_is_for_its_owner_alone_and_no_key_is_overwritten(keys):
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        generate(*keys)
    with pytest.raises(UsageError, match="never overwritten"):
        generate(private.with_name("new.key"), public)
    assert (private.read_bytes(), public.read_bytes()) == before
    assert sorted(file.name for file in private.parent.glob("*.key")) == ["a.key"]


def test_a_passphrase_locks_the_private_key(tmp_path):
    generate(tmp_path / "p.key", tmp_path / "p.pub", b"open")
    assert signing.is_encrypted(tmp_path / "p.key")
    assert load_private(tmp_path / "p.key", b"open").public_key() == load_public(tmp_path / "p.pub")
    with pytest.raises(UsageError, match="EDGEKIT_KEY_PASSPHRASE"):
        load_private(tmp_path / "p.key")
    with pytest.raises(UsageError, match="passphrase right"):
        load_private(tmp_path / "p.key", b"shut")


def test_the_same_bundle_key_and_date_give_the_same_signature(bundle, keys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = sign(bundle.path, load_private(keys[0])).read_bytes()
    assert sign(bundle.path, load_private(keys[0])).read_bytes() == first
    assert check_signature(bundle.path, [keys[1]]).created == "2023-11-14T22:13:20+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "9" * 30)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        sign(bundle.path, load_private(keys[0]))


def test_another_implementation_of_dsse_takes_the_envelope(bundle, keys):
    """By its specification, with the library's verify alone."""
    envelope = json.loads(sign(bundle.path, load_private(keys[0])).read_text())
    body, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    message = f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body
    load_public(keys[1]).verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)
    statement = json.loads(body)
    assert statement["subject"][0]["name"] == "small.edge" and statement["predicate"]["seal"] == bundle.sha256


def test_securesystemslib_verifies_the_envelope(bundle, keys):
    """The library that in-toto and TUF use."""
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    told = json.loads(sign(bundle.path, load_private(keys[0])).read_text())
    key = signer.SSlibKey.from_crypto(load_public(keys[1]), keyid=told["signatures"][0]["keyid"])
    for signature in told["signatures"]:
        signature["sig"] = base64.b64decode(signature["sig"]).hex()
    told["signatures"] = {told["signatures"][0]["keyid"]: told["signatures"][0]}
    envelope = dsse.Envelope(
        base64.b64decode(told["payload"]),
        told["payloadType"],
        {name: signer.Signature(name, value["sig"]) for name, value in told["signatures"].items()},
    )
    assert envelope.verify([key], 1)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_is_not_signed_by_a_trusted_key_is_refused(bundle, keys, tmp_path):
    _, public = keys
    with pytest.raises(IntegrityError, match="not signed"):
        check_signature(bundle.path, [public])
    generate(tmp_path / "b.key", tmp_path / "b.pub")
    sign(bundle.path, load_private(tmp_path / "b.key"))
    with pytest.raises(IntegrityError, match="not by a trusted key"):
        check_signature(bundle.path, [public])
    # Naming the trusted key does not help: nothing hangs on the name.
    file = signature_path(bundle.path)
    envelope = json.loads(file.read_text())
    envelope["signatures"][0]["keyid"] = signing.key_id(load_public(public))
    file.write_text(json.dumps(envelope))
    with pytest.raises(IntegrityError, match="not by a trusted key"):
        check_signature(bundle.path, [public])


def test_a_bundle_that_changed_after_signing_is_refused(bundle, keys, tmp_path):
    sign(bundle.path, load_private(keys[0]))
    other = small.bundle(tmp_path / "other", role="reference")
    bundle.path.write_bytes(other.path.read_bytes())
    with pytest.raises(IntegrityError, match="of another file"):
        check_signature(bundle.path, [keys[1]])


def test_every_changed_byte_of_a_signature_is_refused_or_means_the_same(bundle, keys):
    file = sign(bundle.path, load_private(keys[0]))
    content = file.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        try:
            check_signature(bundle.path, [keys[1]])
        except IntegrityError:
            continue
        # The name of a key is a hint, and white space is nothing.
        was, now = json.loads(content), json.loads(changed)
        for one, other in ((was, now), (was["signatures"][0], now["signatures"][0])):
            values = [
                base64.b64decode(envelope["payload" if "payload" in envelope else "sig"]) for envelope in (one, other)
            ]
            assert values[0] == values[1]


def test_a_signature_for_another_kind_of_text_does_not_pass(bundle, keys):
    """Domain separation: the same key signs the same bytes as another type, or as they are."""
    private = load_private(keys[0])
    file = sign(bundle.path, private)
    payload = base64.b64decode(json.loads(file.read_text())["payload"])
    for message in (payload, b"DSSEv1 10 text/plain %d %s" % (len(payload), payload)):
        change(file, signatures=[{"keyid": "", "sig": base64.b64encode(private.sign(message)).decode()}])
        with pytest.raises(IntegrityError, match="not by a trusted key"):
            check_signature(bundle.path, [keys[1]])


@pytest.mark.parametrize(
    "statement",
    [
        b"{}",
        b"not json",
        json.dumps({"_type": signing.STATEMENT, "subject": [], "predicateType": signing.PREDICATE}).encode(),
        b'{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1"}',
    ],
)
def test_a_trusted_key_on_another_statement_does_not_pass(bundle, keys, statement):
    private = load_private(keys[0])
    file = sign(bundle.path, private)
    signature = private.sign(b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(statement), statement))
    change(
        file,
        payload=base64.b64encode(statement).decode(),
        signatures=[{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    )
    with pytest.raises(IntegrityError, match="no statement about a bundle"):
        check_signature(bundle.path, [keys[1]])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b"x" * 100_000])
def test_a_broken_signature_file_is_refused(bundle, keys, content):
    signature_path(bundle.path).write_bytes(content)
    with pytest.raises(IntegrityError, match="no signature of a bundle"):
        check_signature(bundle.path, [keys[1]])


def test_a_damaged_bundle_is_not_signed(bundle, keys):
    bundle.path.write_bytes(small.damaged(bundle))
    with pytest.raises(IntegrityError, match="do not match its digest"):
        sign(bundle.path, load_private(keys[0]))
    assert not signature_path(bundle.path).exists()


def test_key_files_that_are_none_are_refused(keys, tmp_path):
    private, public = keys
    curve = ec.generate_private_key(ec.SECP256R1())
    other, others = tmp_path / "ec.key", tmp_path / "ec.pub"
    other.write_bytes(curve.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    others.write_bytes(curve.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    for load, file, message in (
        (load_private, other, "another kind than Ed25519"),
        (load_public, others, "another kind than Ed25519"),
        (load_public, private, "private key, which stays"),
        (load_private, public, "no private key in PEM"),
        (load_private, tmp_path / "none", "No such file"),
        (load_public, tmp_path, "no plain file"),
    ):
        with pytest.raises(UsageError, match=message):
            load(file)
    raw = tmp_path / "raw.pub"
    for content in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", bytes(70_000)):
        raw.write_bytes(content)
        with pytest.raises(UsageError, match=r"no public key|larger than"):
            load_public(raw)


def test_keys_of_openssl_serve_too(bundle, tmp_path):
    """PKCS #8 and SubjectPublicKeyInfo are what it writes."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    private, public = tmp_path / "o.key", tmp_path / "o.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    sign(bundle.path, load_private(private))
    assert check_signature(bundle.path, [public]).key == public


def test_without_keys_nothing_is_trusted(bundle, keys):
    sign(bundle.path, load_private(keys[0]))
    with pytest.raises(UsageError, match="no public key"):
        check_signature(bundle.path, [])


def test_the_generated_keys_are_ed25519(keys):
    assert isinstance(load_private(keys[0]), Ed25519PrivateKey)
