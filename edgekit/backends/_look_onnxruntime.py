"""Looking into models of ONNX Runtime: the graph that its optimizer leaves, its own profile, and its tensors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.backends._onnxruntime_graph import CONVERSIONS, MOVES, eight_bit, is_kernel
from edgekit.backends.looking import TIMED, WARM_UP, Array, Feed, Kernel, Owners, median, plain_name
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.quant.record import Record

if TYPE_CHECKING:
    import onnx

LAYOUTS = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""What the optimizer puts in to change the layout; an operator of the source keeps its name."""


class LookAtOnnxRuntime:
    """One `model.onnx`, on one thread."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], record: Record) -> None:
        self.path = folder / manifest["entry"]
        self.owners = Owners(record)
        self.inputs = [entry["name"] for entry in manifest["inputs"]]
        self.ort = require("onnxruntime", extra="onnxruntime", why="looking into a bundle of ONNX Runtime")
        require("onnx", extra="onnx", why="looking into a bundle of ONNX Runtime")
        self.ort.disable_telemetry_events()

    def kernels(self, feed: Feed) -> list[Kernel]:
        """The optimized graph's nodes with their times from the profiler."""
        import onnx

        with TemporaryDirectory() as folder:
            options = self._options()
            written = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(written)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._session(self.path, options)
            for _ in range(WARM_UP + TIMED):
                session.run(None, dict(zip(self.inputs, feed, strict=True)))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            optimized = onnx.load(written, load_external_data=False)
        taken: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                taken[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e6)
        return self._kernels(optimized, {name: median(times[WARM_UP:]) for name, times in taken.items()})

    def _kernels(self, optimized: onnx.ModelProto, seconds: Mapping[str, float | None]) -> list[Kernel]:
        constants = {tensor.name for tensor in optimized.graph.initializer}
        integers = eight_bit(optimized)
        owner: dict[str, str] = {}
        found: list[Kernel] = []
        for node in reversed(optimized.graph.node):  # readers first: what has no name belongs to what reads it
            time = seconds.get(node.name)
            if node.op_type == "Constant" or (node.op_type in CONVERSIONS and node.input[0] in constants):
                continue
            if node.op_type in CONVERSIONS:
                found.append(Kernel(node.op_type, "conversion", (), time))
                continue
            own = self.owners.find(node.name) or next(iter(self.owners.all(node.output)), None)
            if own is None and node.op_type in LAYOUTS:
                found.append(Kernel(node.op_type, "layout", (), time))
                continue
            own = own or next((owner[name] for name in node.output if name in owner), None)
            if own:
                owner.update(dict.fromkeys(node.input, own))
            integer = is_kernel(node) or (node.op_type in MOVES and node.output[0] in integers)
            found.append(Kernel(node.op_type, "int8" if integer else "float", (own,) if own else (), time))
        return found[::-1]

    def probe(self) -> Callable[[Feed], dict[str, Array]]:
        """A session with every activation as an output, 8-bit ones as integers: the fusions stay as they are."""
        import onnx

        proto = onnx.load(self.path, load_external_data=False)
        grids = _grids(proto, self.path.parent)
        quantized = {name for node in proto.graph.node if node.op_type in CONVERSIONS for name in node.output}
        floats = [name for node in proto.graph.node for name in node.output if name in self.owners.makers]
        names = dict.fromkeys([*(grid.integers for grid in grids.values()), *(n for n in floats if n not in quantized)])
        there = {value.name for value in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
        with TemporaryDirectory(dir=self.path.parent) as folder:  # beside its external data
            path = Path(folder).with_suffix(".onnx")
            onnx.save(proto, path)
            try:
                session = self._session(path, self._options())
            finally:
                path.unlink()

        def run(feed: Feed) -> dict[str, Array]:
            found = dict(zip(names, session.run(list(names), dict(zip(self.inputs, feed, strict=True))), strict=True))
            real = {tensor: grid.real(found.pop(grid.integers)) for tensor, grid in grids.items()}
            return {**found, **real}

        return run

    def _options(self) -> Any:
        options = self.ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        return options

    def _session(self, path: Path, options: Any) -> Any:
        try:
            return self.ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception types derive from Exception alone
            reason = " ".join(str(error).split())[:400]
            raise UsageError(f"ONNX Runtime {self.ort.__version__} cannot load the bundle's model: {reason}") from error


@dataclass(frozen=True)
class _Grid:
    """The tensor of 8-bit integers behind an activation, and what they mean."""

    integers: str
    scale: np.float32
    zero_point: int

    def real(self, values: Array) -> Array:
        return (values.astype(np.float32) - self.zero_point) * self.scale


def _grids(proto: onnx.ModelProto, folder: Path) -> dict[str, _Grid]:
    """The grid of every activation that is quantized, under the source's name."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            scale, zero = (numpy_helper.to_array(constants[name], str(folder)) for name in node.input[1:3])
            found[plain_name(node.output[0])] = _Grid(node.input[0], np.float32(scale), int(zero))
    return found
