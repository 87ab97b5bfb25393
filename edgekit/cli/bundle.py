"""`edgekit bundle inspect|verify PATH`: look into a bundle without running anything of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.verb import Json, say, verb

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

app = typer.Typer(help="Look into a bundle and verify it, without running anything of it.", no_args_is_help=True)
PathArgument = Annotated[Path, typer.Argument(help="A .edge file.", show_default=False)]


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
def verify(path: PathArgument, as_json: Json = False) -> None:
    """Check every byte of a bundle against its digest; ends with 8 if one differs."""
    from edgekit.bundle import open_bundle

    bundle = open_bundle(path)
    if as_json:
        say(json.dumps({"path": str(path), "sha256": bundle.sha256, "intact": True}, indent=2))
    else:
        say(f"{path}: intact, sha256 {bundle.sha256}")


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
        [
            f"{bundle.path.name}: {m.model} for {m.target}, {m.backend}, {m.role}, {m.precision} ({m.status})",
            sizes,
            *tensors,
            f"  stages    {' -> '.join(str(stage.get('name', '?')) for stage in m.stages) or 'none'}",
            f"  versions  {versions or 'unknown'}",
            f"  licences  {licences or 'none stated'}",
            f"  sha256    {bundle.sha256}",
        ]
    )
