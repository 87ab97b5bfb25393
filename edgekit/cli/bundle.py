"""`edgekit bundle ...`: look into bundles, verify and sign them, without running anything of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.verb import Json, say, verb
from edgekit.plain import printable

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.report.facts import Facts
    from edgekit.report.report import Report

app = typer.Typer(
    help="Look into bundles, verify and sign them, without running anything of them.", no_args_is_help=True
)
PathArgument = Annotated[Path, typer.Argument(help="A .edge file.", show_default=False)]
PathsArgument = Annotated[list[Path], typer.Argument(help=".edge files.", show_default=False)]
Key = Annotated[Path, typer.Option(help="The private key, a PEM file.", show_default=False)]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="report.json of the run that made it.", show_default=False)
]
Keys = Annotated[
    list[Path] | None,
    typer.Option("--key", help="A public key that is trusted, a PEM file; may be given again.", show_default=False),
]


@app.command()
@verb
def inspect(path: PathArgument, as_json: Json = False) -> None:
    """Show what a bundle holds: model, inputs, outputs, versions, licences."""
    from edgekit.bundle import open_bundle

    bundle = open_bundle(path)
    if as_json:
        facts = {"path": str(path), "sha256": bundle.sha256, "size_bytes": bundle.size_bytes}
        say(
            json.dumps(
                {**facts, "model_bytes": bundle.model_bytes, **bundle.manifest.model_dump(mode="json")}, indent=2
            )
        )
    else:
        say(_text(bundle))


@app.command()
@verb
def verify(paths: PathsArgument, key: Keys = None, report: ReportFile = None, as_json: Json = False) -> int:
    """Check every byte of bundles, with --key who signed them, with --report what was measured; 8 if one fails."""
    from edgekit.errors import EdgekitError, worst
    from edgekit.report.report import read_report

    told = read_report(report) if report else None
    rows: list[dict[str, Any]] = []
    codes = []
    for path in paths:
        try:
            rows.append(_verified(path, key or [], told))
        except EdgekitError as error:
            if len(paths) == 1:
                raise
            rows.append({"path": str(path), "intact": False, "error": str(error)})
            codes.append(int(error.exit_code))
    if as_json:
        say(json.dumps(rows[0] if len(paths) == 1 else rows, indent=2))
        return int(worst(codes))
    for row in rows:
        if "error" in row:
            print(printable(f"edgekit: {row['error']}"), file=sys.stderr)
        else:
            by = f", signed by {row['signed_by']} ({row['key']})" if "signed_by" in row else ""
            seen = f", measured as {row['measured']}" if "measured" in row else ""
            say(printable(f"{row['path']}: intact, sha256 {row['sha256']}{by}{seen}"))
    return int(worst(codes))


def _verified(path: Path, keys: list[Path], report: Report | None) -> dict[str, Any]:
    """The bundle is opened after its signature was checked: nobody's file but a trusted one's is parsed then."""
    from edgekit.bundle import open_bundle

    signed = {}
    if keys:
        from edgekit.signing import check_signature

        signer = check_signature(path, keys)
        signed = {"signed_by": signer.key_id, "key": str(signer.key), "signed_at": signer.created}
    bundle, found = open_bundle(path), {}
    if report is not None:
        from edgekit.report.facts import measured

        found = {"measured": measured(bundle, report).key}
    return {"path": str(path), "sha256": bundle.sha256, "intact": True, **signed, **found}


@app.command()
@verb
def sign(paths: PathsArgument, key: Key, as_json: Json = False) -> None:
    """Sign bundles with a private key: writes X.edge.sig beside each. EDGEKIT_KEY_PASSPHRASE opens an encrypted key."""
    from edgekit import signing

    passphrase = _passphrase(confirm=False) if signing.is_encrypted(key) else None
    if key.stat().st_mode & 0o077:
        print(printable(f"edgekit: {key} can be read by others: chmod 600 {key}"), file=sys.stderr)
    private = signing.load_private(key, passphrase)
    written = [str(signing.sign(path, private)) for path in paths]
    found = {"key_id": signing.key_id(private.public_key()), "signatures": written}
    say(json.dumps(found, indent=2) if as_json else "\n".join(map(printable, written)))


@app.command()
@verb
def keygen(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key (private, keep it) and NAME.pub.")] = Path("edgekit"),
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the private key; asks, or takes EDGEKIT_KEY_PASSPHRASE.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make an Ed25519 key pair to sign bundles with; nothing is sent anywhere."""
    from edgekit import signing

    private, public = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    identity = signing.generate(private, public, _passphrase(confirm=True) if passphrase else None)
    if as_json:
        say(json.dumps({"key_id": identity, "private": str(private), "public": str(public)}, indent=2))
    else:
        say(printable(f"{private}: private, keep it secret"))
        say(printable(f"{public}: public, give it to those who verify"))
        say(f"key {identity}")


Out = Annotated[Path | None, typer.Option("--out", help="Write to this file, not to stdout.", show_default=False)]


@app.command()
@verb
def bom(path: PathArgument, report: ReportFile = None, out: Out = None) -> None:
    """Write the bill of materials of a bundle: CycloneDX 1.6 with model, data, runtime, licences and figures."""
    from edgekit.report import bom as renderer

    _write(renderer.render(_facts(path, report)), out)


@app.command()
@verb
def card(path: PathArgument, report: ReportFile = None, out: Out = None) -> None:
    """Write the model card of a bundle, in Markdown."""
    from edgekit.report import card as renderer

    _write(renderer.render(_facts(path, report)), out)


def _facts(path: Path, report: Path | None) -> Facts:
    from edgekit.bundle import open_bundle
    from edgekit.report.facts import facts
    from edgekit.report.report import read_report

    return facts(open_bundle(path), read_report(report) if report else None)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        say(text)
        return
    from edgekit.errors import UsageError
    from edgekit.report.report import write_text

    try:
        write_text(out, text)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}. Check the folder and its permissions.") from error


def _passphrase(*, confirm: bool) -> bytes:
    """From the environment, or asked for where somebody can answer."""
    from edgekit.errors import UsageError
    from edgekit.signing import PASSPHRASE

    found = os.environ.get(PASSPHRASE)
    if found is None and sys.stdin.isatty():
        found = str(typer.prompt("passphrase of the key", hide_input=True, confirmation_prompt=confirm, err=True))
    if not found:
        raise UsageError(f"the key needs a passphrase, and nobody can be asked for it here. Set {PASSPHRASE}")
    return found.encode()


def _text(bundle: Bundle) -> str:
    m = bundle.manifest
    tensors = [
        f"  {kind:9} {t.name} {t.dtype} [{', '.join(map(str, t.shape))}]"
        for kind, group in (("input", m.inputs), ("output", m.outputs))
        for t in group
    ]
    sizes = f"  size      {bundle.size_bytes / 1e6:.2f} MB, of which the model {bundle.model_bytes / 1e6:.2f} MB"
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    licences = ", ".join(f"{name}: {licence}" for name, licence in m.licences.items())
    return "\n".join(
        printable(line)
        for line in [
            f"{bundle.path.name}: {m.model} for {m.target}, {m.backend}, {m.role}, {m.precision} ({m.status})",
            sizes,
            *tensors,
            f"  stages    {' -> '.join(str(stage.get('name', '?')) for stage in m.stages) or 'none'}",
            f"  versions  {versions or 'unknown'}",
            f"  licences  {licences or 'none stated'}",
            f"  sha256    {bundle.sha256}",
        ]
    )
