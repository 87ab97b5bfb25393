"""`edgekit devices add|list|check|setup|calibrate|remove|clean`: the boards that you own, and emulated ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.options import KillOnInterrupt, Quiet, Threads, Wait
from edgekit.cli.verb import Json, say, stdout_for_results, verb
from edgekit.cli.wrap import labelled

if TYPE_CHECKING:
    from edgekit.devices.emulated import Emulated
    from edgekit.devices.inventory import Entry
    from edgekit.devices.registering import Checked

app = typer.Typer(
    help="Register boards that have Linux, sshd and Python, set up emulated ones, and look after them.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="What the board is called here.", show_default=False)]
WIDE = 14


@app.command()
@verb
def add(
    name: Name,
    host: Annotated[
        str, typer.Argument(help="[USER@]HOST, or an alias of ~/.ssh/config.", show_default=False, metavar="HOST")
    ],
    port: Annotated[int | None, typer.Option(help="The port of sshd.", show_default="~/.ssh/config, else 22")] = None,
    python: Annotated[str, typer.Option(help="The Python on the board, 3.9 or later.")] = "python3",
    folder: Annotated[str, typer.Option(help="The folder there that edgekit keeps to.")] = "~/.cache/edgekit-board",
    target: Annotated[str | None, typer.Option(help="The target that it is one of.", show_default=False)] = None,
    quota_mb: Annotated[int, typer.Option(help="The most that edgekit keeps there, in MB.")] = 4000,
    emulated: Annotated[bool, typer.Option("--emulated", help="It is an emulator: never time it.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Always queue behind others who measure there.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a board of that name.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Look at the board first.")] = True,
    as_json: Json = False,
) -> None:
    """Register a board."""
    from edgekit.devices.registering import add as register

    user, _, host = host.rpartition("@")
    values = {"host": host, "user": user or None, "port": port, "python": python, "folder": folder, "target": target}
    entry = _entry({**values, "quota_mb": quota_mb, "emulated": emulated, "wait": wait})
    with stdout_for_results():
        seen = register(name, entry, check=check, replace=replace)
    if as_json:
        say(json.dumps(_value(seen), indent=2))
    else:
        say("\n".join([f"Registered {name}." if check else f"Registered {name}, unseen.", *_text(seen)[1:]]))


@app.command("list")
@verb
def list_devices(as_json: Json = False) -> None:
    """List the registered boards, and the emulated devices with what is set up of them."""
    from edgekit.devices.emulated import ALL
    from edgekit.devices.inventory import inventory_path, load_inventory

    boards, emulated = load_inventory(), [kind() for kind in ALL.values()]
    if as_json:
        found = {name: entry.model_dump(mode="json") for name, entry in boards.items()}
        say(json.dumps(found | {one.name: _played(one) for one in emulated}, indent=2))
        return
    lines = [line for name, entry in boards.items() for line in labelled(name, _where(entry), WIDE)]
    lines = lines or [f"No boards in {inventory_path()}. `edgekit devices add NAME HOST` registers one."]
    say("\n".join([*lines, "", "Emulated: what they compute counts, they are never timed", *_emulated_lines(emulated)]))


@app.command()
@verb
def check(name: Name, as_json: Json = False) -> int:
    """Look at a device, leaving no trace; ends with 5 if it cannot serve, 6 if it is not set up."""
    from edgekit.devices.registering import check as look
    from edgekit.devices.registering import emulated
    from edgekit.errors import ExitCode

    if device := emulated(name):
        say(json.dumps(_played(device), indent=2) if as_json else "\n".join(_emulated_lines([device])))
        return ExitCode.PASS if device.ready else ExitCode.MISSING_DEPENDENCY
    with stdout_for_results():
        seen = look(name)
    say(json.dumps(_value(seen), indent=2) if as_json else "\n".join(_text(seen)))
    return ExitCode.DEVICE if seen.problems else ExitCode.PASS


@app.command()
@verb
def setup(name: Name, quiet: Quiet = False, as_json: Json = False) -> None:
    """Set up an emulated device: fetch what it needs. Nothing is installed, and no privilege needed."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.devices.registering import setup as make

    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress:
        device = make(name, progress)
    say(json.dumps(_played(device), indent=2) if as_json else "\n".join(_emulated_lines([device])))


@app.command()
@verb
def calibrate(
    name: Name,
    bundle: Annotated[Path, typer.Argument(help="A .edge file that runs there.", show_default=False)],
    threads: Threads = 1,
    wait: Wait = False,
    kill_on_interrupt: KillOnInterrupt = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how finely a board tells models apart, by one against itself, and remember it."""
    from edgekit.calibrating import calibrate as measure
    from edgekit.cli.progress import progress_on_stderr

    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress:
        noise = measure(
            name, bundle, threads=threads, wait=wait, kill_on_interrupt=kill_on_interrupt, progress=progress
        )
    if as_json:
        say(json.dumps({"name": name, **noise.model_dump(mode="json")}, indent=2))
    else:
        say(
            f"{name}: a model against itself after {noise.rounds} rounds: ± {noise.half_width:.2%}. "
            f"Tolerances below {2 * noise.half_width:.2%} are refused there."
        )


@app.command()
@verb
def remove(name: Name, as_json: Json = False) -> None:
    """Forget a board. `clean` it first: what lies on it stays there."""
    from edgekit.devices.registering import remove as forget

    entry = forget(name)
    say(json.dumps({"removed": name, **entry.model_dump(mode="json")}, indent=2) if as_json else f"Removed {name}.")


@app.command()
@verb
def clean(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="End jobs that run there.")] = False,
    as_json: Json = False,
) -> None:
    """Remove all that edgekit left on a board (runtimes, bundles, results), or what an emulated device is made of."""
    from edgekit.devices.registering import clean as remove_all

    with stdout_for_results():
        freed = remove_all(name, force=force)
    say(json.dumps({"name": name, "freed_bytes": freed}) if as_json else f"{name}: {freed / 1e6:.1f} MB freed.")


def _emulated_lines(devices: list[Emulated]) -> list[str]:
    state = ["ready" if one.ready else f"not set up: edgekit devices setup {one.name}" for one in devices]
    texts = [f"{one.description}; {said}" for one, said in zip(devices, state, strict=True)]
    return [line for one, text in zip(devices, texts, strict=True) for line in labelled(one.name, text, 21)]


def _played(device: Emulated) -> dict[str, Any]:
    return {"kind": "emulated", **device.describe(), "ready": device.ready, "folder": str(device.folder)}


def _entry(values: dict[str, Any]) -> Entry:
    from pydantic import ValidationError

    from edgekit.devices.inventory import Entry
    from edgekit.errors import UsageError
    from edgekit.yamlfile import explain

    try:
        return Entry.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {explain(first, Entry)}") from None


def _where(entry: Entry) -> str:
    user, port = f"{entry.user}@" if entry.user else "", f":{entry.port}" if entry.port else ""
    parts = [f"{user}{entry.host}{port}"]
    parts += [f"target {entry.target}"] if entry.target else []
    parts += ["emulated"] if entry.emulated else []
    parts += [f"noise {entry.noise.half_width:.2%}"] if entry.noise else []
    return ", ".join(parts)


def _value(seen: Checked) -> dict[str, Any]:
    entry = seen.entry.model_dump(mode="json")
    return {"name": seen.name, "entry": entry, "facts": dict(seen.facts), "problems": list(seen.problems)}


def _text(seen: Checked) -> list[str]:
    facts = seen.facts
    lines = [f"{seen.name}: {_where(seen.entry)}"]
    if facts:
        has = ", ".join(facts["runtimes"]) or "none, edgekit brings them"
        rows = [
            ("processor", f"{facts['cpu']}, {facts['cores']} cores, {facts['arch']}"),
            ("for int8", ", ".join(facts["features"]) or "nothing known"),
            ("memory", f"{facts['memory_bytes'] / 1e9:.1f} GB"),
            ("python", f"{facts['python']} ({facts['executable']}), {' '.join(facts['libc'])}"),
            ("disk", f"{facts['free_bytes'] / 1e9:.1f} GB free, {facts['used_bytes'] / 1e6:.0f} MB used by edgekit"),
            ("runtimes", has),
        ]
        lines += [line for label, text in rows for line in labelled(f"  {label}", text, WIDE)]
    return lines + [line for problem in seen.problems for line in labelled("  problem", problem, WIDE)]
