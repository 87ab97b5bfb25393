"""Fuzzed bundles, manifests, signatures and keys: refused in words or right, never a traceback, a hang or a flood.

`EDGEKIT_FUZZ_EXAMPLES` runs more of each. What was found, or is a trap of its own, is kept in `corpus/provenance`.
"""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sealed_zips import reseal, sealed, with_manifest

from edgekit.agent.arrays import write_npz
from edgekit.bundle import Manifest, extract_model, open_bundle, read_golden
from edgekit.errors import EdgekitError, IntegrityError, UsageError
from edgekit.signing import check_signature, generate, load_private, load_public, sign, signature_path

CORPUS = Path(__file__).parent / "corpus" / "provenance"
FLOOD = 64_000_000
"""Bytes that no refusal may need."""

fuzz = settings(
    max_examples=int(os.environ.get("EDGEKIT_FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    write_npz(buffer, arrays)
    return buffer.getvalue()


@functools.cache
def tiny() -> tuple[tuple[str, bytes], ...]:
    """The members of the smallest bundle that opens: about 2 kB, so that a change is likely to hit something."""
    held = {
        "__main__.py": b"raise SystemExit(8)\n",
        "golden/inputs.npz": npz(image=np.zeros((1, 1, 2, 2), np.float32)),
        "golden/outputs.npz": npz(logits=np.zeros((1, 3), np.float32)),
        "manifest.json": small.manifest().model_dump_json().encode(),
        "model/model.onnx": b"model",
    }
    return tuple(with_manifest(list(held.items())))


@functools.cache
def tiny_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return reseal(Path(folder) / "tiny.edge", list(tiny())).read_bytes()


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < FLOOD
    finally:
        tracemalloc.stop()


def opened_or_refused(path: Path) -> bool:
    """Whether it opens; a bundle that does can be read and unpacked, and stays in its folder."""
    try:
        with bounded():
            bundle = open_bundle(path)
    except IntegrityError as error:
        assert str(error).isprintable() and len(str(error)) < 2000
        return False
    with bounded():
        read_golden(bundle, "inputs")
        read_golden(bundle, "outputs")
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / "a" / "b"
            written = extract_model(bundle, inside)
            assert all(file.resolve().is_relative_to(inside.resolve()) and not file.is_symlink() for file in written)
            assert {file for file in Path(folder).rglob("*") if not file.is_dir()} == set(written)
    return True


def test_the_tiny_bundle_opens(tmp_path: Path) -> None:
    (tmp_path / "tiny.edge").write_bytes(tiny_file())
    assert opened_or_refused(tmp_path / "tiny.edge")


NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 1 << 16), st.integers(0, 255)),
        st.tuples(st.just("short"), st.integers(0, 1 << 16), st.sampled_from(NUMBERS)),
        st.tuples(st.just("long"), st.integers(0, 1 << 16), st.sampled_from(NUMBERS)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 16), st.integers(1, 64)),
        st.tuples(st.just("put"), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=32)),
        st.tuples(st.just("copy"), st.integers(0, 1 << 16), st.integers(0, 1 << 16)),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def edit(content: bytes, edits: list[tuple]) -> bytes:
    changed = bytearray(content)
    for kind, place, value in edits:
        at = place % max(1, len(changed))
        if kind == "byte":
            changed[at : at + 1] = bytes([value])
        elif kind == "short":
            changed[at : at + 2] = struct.pack("<H", value & 0xFFFF)
        elif kind == "long":
            changed[at : at + 4] = struct.pack("<I", value)
        elif kind == "cut":
            del changed[at : at + value]
        elif kind == "put":
            changed[at:at] = value
        else:
            start = value % max(1, len(changed))
            changed[at : at + 46] = changed[start : start + 46]
    return bytes(changed)


@fuzz
@given(EDITS)
def test_changed_bytes_under_a_digest_that_fits(tmp_path: Path, edits: list[tuple]) -> None:
    path = tmp_path / "fuzzed.edge"
    path.write_bytes(sealed(edit(tiny_file()[:-71], edits) + bytes(71)))
    opened_or_refused(path)


@fuzz
@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_bundle(tmp_path: Path, content: bytes, fits: bool) -> None:
    path = tmp_path / "fuzzed.edge"
    path.write_bytes(sealed(content + bytes(71)) if fits else content)
    assert not opened_or_refused(path)


PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "", "model", "Model", "a", "con", "aux.", "C:", "~", "a\\b", "\x00", "\x1b[2J", "é", "e\u0301"]
    ),
    st.text(max_size=6),
)
ADDED = st.lists(
    st.tuples(
        st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(bool),
        st.binary(max_size=40),
        st.sampled_from([0, 0o100644, 0o120777, 0o040755, 0o010644, 0o140777]),
        st.booleans(),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@fuzz
@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(ADDED)
def test_members_of_all_names_and_kinds(tmp_path: Path, added: list[tuple[str, bytes, int, bool]]) -> None:
    held, names = list(tiny()), []
    for name, content, mode, inside in added:
        name = f"model/{name}" if inside else name
        try:
            info = zipfile.ZipInfo(name)
            info.filename.encode()
        except (ValueError, UnicodeError):
            continue
        info.create_system, info.external_attr = 3, mode << 16
        names.append((info, content))
    known = with_manifest([*((n, c) for n, c in held), *((info.filename, c) for info, c in names)])
    made = dict(known)["manifest.json"]
    members = [*((n, c) for n, c in held if n != "manifest.json"), *names, ("manifest.json", made)]
    opened_or_refused(reseal(tmp_path / "fuzzed.edge", members))


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["..", "x" * 5000, 10**400]),
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@fuzz
@given(st.dictionaries(st.sampled_from(sorted(Manifest.model_fields)), JSON, min_size=1, max_size=3))
def test_manifests_with_other_values(tmp_path: Path, changes: dict[str, object]) -> None:
    held = dict(tiny())
    manifest = json.dumps({**json.loads(held["manifest.json"]), **changes}).encode()
    opened_or_refused(reseal(tmp_path / "fuzzed.edge", list({**held, "manifest.json": manifest}.items())))


@fuzz
@given(EDITS)
def test_manifests_with_changed_bytes(tmp_path: Path, edits: list[tuple]) -> None:
    held = dict(tiny())
    changed = {**held, "manifest.json": edit(held["manifest.json"], edits)}
    opened_or_refused(reseal(tmp_path / "fuzzed.edge", list(changed.items())))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """A signed bundle, the public key, and what the signature's file held."""
    folder = tmp_path_factory.mktemp("signed")
    bundle = folder / "tiny.edge"
    bundle.write_bytes(tiny_file())
    generate(folder / "a.key", folder / "a.pub")
    return bundle, folder / "a.pub", sign(bundle, load_private(folder / "a.key")).read_bytes()


def same_signature(one: bytes, other: bytes) -> bool:
    import base64

    envelopes = [json.loads(content) for content in (one, other)]
    values = [(e["payload"], *(s["sig"] for s in e["signatures"])) for e in envelopes]
    first, second = ([base64.b64decode(value) for value in each] for each in values)
    return first[0] == second[0] and first[1] in second[1:]


@fuzz
@given(EDITS)
def test_signatures_with_changed_bytes(signed: tuple[Path, Path, bytes], edits: list[tuple]) -> None:
    bundle, public, content = signed
    changed = edit(content, edits)
    signature_path(bundle).write_bytes(changed)
    try:
        with bounded():
            check_signature(bundle, [public])
    except IntegrityError:
        return
    assert same_signature(content, changed), "a signature that is not the one that was made"


@fuzz
@given(JSON | st.binary(max_size=200))
def test_signatures_of_other_shapes(signed: tuple[Path, Path, bytes], content: object) -> None:
    bundle, public, _ = signed
    signature_path(bundle).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(IntegrityError):
        check_signature(bundle, [public])


@functools.cache
def key_files() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        generate(home / "a.key", home / "a.pub")
        generate(home / "b.key", home / "b.pub", b"open")
        return tuple((home / name).read_bytes() for name in ("a.key", "a.pub", "b.key"))


@fuzz
@given(st.sampled_from([0, 1, 2]), EDITS | st.binary(max_size=200))
def test_key_files(tmp_path: Path, which: int, edits: list[tuple] | bytes) -> None:
    path = tmp_path / "fuzzed.pem"
    path.write_bytes(edits if isinstance(edits, bytes) else edit(key_files()[which], edits))
    loaders: list[Callable[[], object]] = [
        lambda: load_public(path),
        lambda: load_private(path),
        lambda: load_private(path, b"open"),
    ]
    for load in loaders:
        try:
            with bounded():
                key = load()
        except UsageError as error:
            assert len(str(error)) < 2000
        else:
            assert isinstance(key, Ed25519PrivateKey) or key.__class__.__name__ == "Ed25519PublicKey"


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.edge")), ids=lambda file: file.stem)
def test_kept_bundles(file: Path) -> None:
    assert opened_or_refused(file) == file.stem.startswith("good")


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.sig")), ids=lambda file: file.stem)
def test_kept_signatures(signed: tuple[Path, Path, bytes], file: Path) -> None:
    bundle, public, _ = signed
    signature_path(bundle).write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError):
        check_signature(bundle, [public])


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.pem")), ids=lambda file: file.stem)
def test_kept_keys(file: Path) -> None:
    for load in (load_public, load_private):
        with pytest.raises(EdgekitError) as caught:
            load(file)
        assert caught.type is UsageError


def test_the_corpus_is_there() -> None:
    assert len(list(CORPUS.glob("*.edge"))) >= 12 and list(CORPUS.glob("*.sig")) and list(CORPUS.glob("*.pem"))
