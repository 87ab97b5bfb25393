"""Looking into .tflite files: which operators XNNPACK takes, in which type, and the tensors. LiteRT tells no times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends._litert_quiet import quiet
from edgekit.backends.looking import Array, Feed, Kernel, Owners
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.quant.record import Record

CONVERSIONS = frozenset({"DEQUANTIZE", "QUANTIZE"})
LAYOUTS = frozenset({"RESHAPE", "TRANSPOSE"})


class LookAtLiteRT:
    """One .tflite, on one thread."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], record: Record) -> None:
        self.path = folder / manifest["entry"]
        self.owners = Owners(record)
        self.order = manifest["runner"].get("inputs", range(len(manifest["inputs"])))
        self.litert = require("ai_edge_litert.interpreter", extra="litert", why="looking into a bundle of LiteRT")

    def kernels(self, feed: Feed) -> list[Kernel]:
        """The interpreter's operators after XNNPACK took its share."""
        opened = self._open(keep=False)
        tensors = {about["index"]: about for about in opened.get_tensor_details()}
        every = opened._get_ops_details()  # the only place that tells what the delegate took
        steps = [step for step in every if step["op_name"] != "DELEGATE"]
        taken = _delegated(steps, [step for step in every if step["op_name"] == "DELEGATE"])
        owner: dict[int, str] = {}
        found = []
        for step in reversed(steps):  # readers first: what has no name of its own belongs to what reads it
            name = f"{step['op_name']} ({'XNNPACK' if step['index'] in taken else 'builtin kernel'})"
            names = [_plain(tensors[index]["name"]) for index in step["outputs"]]
            own = next(iter(self.owners.all(n for n in names if n in self.owners.makers)), None)
            known = own
            own = own or next((owner[index] for index in map(int, step["outputs"]) if index in owner), None)
            if own:
                for index in map(int, step["inputs"]):
                    owner.setdefault(index, own)
            if step["op_name"] in CONVERSIONS:
                found.append(Kernel(name, "conversion"))
                continue
            if known is None and step["op_name"] in LAYOUTS:
                found.append(Kernel(name, "layout"))
                continue
            integer = all(tensors[index]["dtype"] is np.int8 for index in step["outputs"])
            found.append(Kernel(name, "int8" if integer else "float", (own,) if own else ()))
        return found[::-1]

    def probe(self) -> Callable[[Feed], dict[str, Array]]:
        """The interpreter with every tensor kept, on the builtin kernels: XNNPACK keeps none.

        The two may differ by a step; the network's own outputs are XNNPACK's.
        """
        opened, plain_run = self._open(keep=True), self._open(keep=False)
        given = [opened.get_input_details()[place]["index"] for place in self.order]
        wanted = {}
        for about in opened.get_tensor_details():
            plain = _plain(about["name"])
            if plain in self.owners.makers and (plain not in wanted or about["dtype"] is np.int8):
                wanted[plain] = about

        def run(feed: Feed) -> dict[str, Array]:
            for interpreter in (opened, plain_run):
                for place, array in zip(given, feed, strict=True):
                    interpreter.set_tensor(place, np.ascontiguousarray(array))
                interpreter.invoke()
            found = {name: _real(opened.get_tensor(about["index"]), about) for name, about in wanted.items()}
            ends = {about["name"]: about["index"] for about in plain_run.get_output_details()}
            return found | {name: plain_run.get_tensor(i) for name, i in ends.items() if name in found}

        return run

    def _open(self, *, keep: bool) -> Any:
        kinds = self.litert.OpResolverType
        try:
            with quiet():
                opened = self.litert.Interpreter(
                    model_content=self.path.read_bytes(),
                    num_threads=1,
                    experimental_preserve_all_tensors=keep,
                    experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if keep else kinds.BUILTIN,
                )
                opened.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"LiteRT cannot load the bundle's model: {' '.join(str(error).split())}") from error
        return opened


def _plain(name: str) -> str:
    """The quantizer calls the 8-bit form of a tensor after it."""
    return name.removesuffix("_int8")


def _real(values: Array, about: Mapping[str, Any]) -> Array:
    scales, zeros = about["quantization_parameters"]["scales"], about["quantization_parameters"]["zero_points"]
    if not len(scales):
        return np.array(values)
    return (values.astype(np.float32) - np.float32(zeros[0])) * np.float32(scales[0])


def _delegated(steps: Sequence[Mapping[str, Any]], delegates: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the operators inside the delegates: those between their inputs and their outputs."""
    makers = {int(index): step for step in steps for index in step["outputs"]}
    found: set[int] = set()
    for delegate in delegates:
        ends, open_ = {int(index) for index in delegate["inputs"]}, [int(index) for index in delegate["outputs"]]
        seen: set[int] = set()
        while open_:
            tensor = open_.pop()
            step = makers.get(tensor)
            if tensor in seen or step is None:
                continue
            seen.add(tensor)
            found.add(int(step["index"]))
            open_ += [int(index) for index in step["inputs"] if int(index) not in ends]
    return found
