"""Looking into models of OpenVINO: the graph that its CPU plugin executes, with its own times, and its tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends._openvino_ir import INTEGERS
from edgekit.backends.looking import TIMED, WARM_UP, Array, Feed, Kernel, Owners, median, plain_name
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.quant.record import Record

SKIPPED = frozenset({"Const", "Input", "Output"})
CONVERSIONS = frozenset({"Convert", "FakeQuantize"})


class LookAtOpenVino:
    """One `model.xml`, on one thread, in the precision that the bundle's runner asks for."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], record: Record) -> None:
        self.path = folder / manifest["entry"]
        self.owners = Owners(record)
        self.inputs = [entry["name"] for entry in manifest["inputs"]]
        self.hints = dict(manifest["runner"].get("hints", {}))
        self.ov = require("openvino", extra="openvino", why="looking into a bundle of OpenVINO")
        self.core = self.ov.Core()

    def kernels(self, feed: Feed) -> list[Kernel]:
        """The steps of the runtime model, with the times of its own counters."""
        compiled = self._compiled(self.core.read_model(self.path), feed, {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        taken: dict[str, list[float]] = defaultdict(list)
        for turn in range(WARM_UP + TIMED):
            request.infer([np.ascontiguousarray(array) for array in feed])
            for step in request.profiling_info if turn >= WARM_UP else ():
                taken[step.node_name].append(step.real_time.total_seconds())
        found = []
        for step in compiled.get_runtime_model().get_ordered_ops():
            about = step.get_rt_info()
            layer, precision, names = (
                about[key].astype(str) for key in ("layerType", "runtimePrecision", "originalLayersNames")
            )
            if layer in SKIPPED:
                continue
            name = step.get_friendly_name()
            found.append(self._kernel(layer, precision, names.split(","), median(taken[name])))
        return [kernel for kernel in found if kernel.operators or kernel.seconds]

    def _kernel(self, layer: str, precision: str, names: Sequence[str], seconds: float | None) -> Kernel:
        if layer == "Reorder":
            return Kernel(layer, "layout", (), seconds)
        computing = [name for name in names if not name.endswith(("/dequantize", "/quantized"))]
        if layer in CONVERSIONS or not self.owners.all(computing):
            return Kernel(layer, "conversion", (), seconds)
        kind = "int8" if precision in INTEGERS else "float"
        return Kernel(layer, kind, self.owners.all(names), seconds)  # type: ignore[arg-type]

    def probe(self) -> Callable[[Feed], dict[str, Array]]:
        """The model with every tensor that has a name as an output."""
        model = self.core.read_model(self.path)
        ends = {name for port in model.outputs for name in port.get_names()}
        ports: dict[str, str] = {}
        for step in model.get_ordered_ops():
            for port in step.outputs() if step.get_type_name() != "Result" else ():
                for name in sorted(port.get_names()):
                    plain = plain_name(name)
                    exact = name == plain
                    if plain in self.owners.makers and not name.endswith("/float") and (exact or plain not in ports):
                        ports[plain] = name
        model.add_outputs([name for name in ports.values() if name not in ends])
        # With more outputs the plugin fuses less, which may move a value by a step: the network's own come from a run
        # of the model as it is.
        plain_model = self.core.read_model(self.path)
        requests: list[Any] = []

        def run(feed: Feed) -> dict[str, Array]:
            if not requests:
                requests.extend(self._compiled(m, feed, {}).create_infer_request() for m in (model, plain_model))
            for request in requests:
                request.infer([np.ascontiguousarray(array) for array in feed])
            found = {name: np.array(requests[0].get_tensor(port).data) for name, port in ports.items()}
            own = {plain_name(next(iter(sorted(p.get_names())), "")): p for p in requests[1].model_outputs}
            return found | {name: np.array(requests[1].get_tensor(p).data) for name, p in own.items() if name in found}

        return run

    def _compiled(self, model: Any, feed: Feed, settings: Mapping[str, Any]) -> Any:
        every = {**self.hints, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, **settings}
        try:
            model.reshape({name: list(array.shape) for name, array in zip(self.inputs, feed, strict=True)})
            return self.core.compile_model(model, "CPU", every)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise UsageError(f"OpenVINO {self.ov.__version__} cannot load the bundle's model: {reason}") from error
