"""Why an int8 bundle is as fast and as exact as it is: what the runtime makes of every operator, and what comes out."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.advice import advice
from edgekit.agent.failures import INTEGRITY, Failure
from edgekit.backends.looking import Feed, Kernel, Look, look_at
from edgekit.bundle import Bundle, extract_model, open_bundle, read_golden, read_member
from edgekit.compare import compare
from edgekit.context import Progress, Silent
from edgekit.devices import Device
from edgekit.errors import IntegrityError, UsageError
from edgekit.quant.record import MEMBER, Operator, Record
from edgekit.report.explanation import Divergence, Explanation, Island, Layer, Timed

THRESHOLD_DB = 20.0
"""Below this signal-to-noise ratio a layer counts as diverged."""

SAMPLES = 16
"""So many samples of a file are looked at."""

FUSED = frozenset({"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"})
"""Activations that a kernel may take along with the operator before them."""


def explain(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    inputs: str | Path | None = None,
    device: Device | None = None,
    rounds: int = 10,
    threshold_db: float = THRESHOLD_DB,
    progress: Progress | None = None,
) -> Explanation:
    """Look into a quantized bundle with the runtime that is installed here.

    Args:
        bundle: a quantized `.edge` file for ONNX Runtime, OpenVINO or LiteRT.
        against: the float bundle of the same model and backend; by default the one beside `bundle`, if there is one.
        inputs: samples as `run` of a bundle takes them; by default the bundle's golden samples.
        device: where the two bundles are timed against each other; None leaves that out.
        rounds: interleaved rounds of that comparison.
        threshold_db: the signal-to-noise ratio below which a layer counts as diverged.
        progress: where to say how far it is; by default nowhere.

    Raises:
        UsageError: a bundle that is not quantized or that nothing can look into, or samples that do not fit.
        IntegrityError: a bundle that is damaged.
        MissingDependencyError: the bundle's runtime is not installed.
    """
    progress = progress or Silent()
    quantized = open_bundle(Path(bundle))
    record = _record(quantized)
    other = _float_bundle(quantized, Path(against) if against else None)
    feeds = _feeds(quantized, Path(inputs) if inputs else None)
    with TemporaryDirectory() as folder, progress.task("look into the bundle"):
        seen = _look(quantized, Path(folder) / "int8", record)
        plan = _Plan.of(seen.kernels(feeds[0]), record)
        reference = _look(other, Path(folder) / "float", record) if other else None
        float_plan = _Plan.of(reference.kernels(feeds[0]), record) if reference else None
        fidelity = _fidelity(seen, reference, feeds, record) if reference else _Fidelity()
    timed = None
    if device is not None and other is not None and quantized.manifest.status == "built":
        with progress.task("time int8 against float"):
            found = compare(device, quantized, other, rounds=(rounds,))
        timed = Timed(ratio=found.ratio, low=found.low, high=found.high, rounds=len(found.rounds))
    story = _Story(quantized, other, record, plan, float_plan, fidelity, threshold_db)
    return story.told(len(feeds), timed)


def _record(bundle: Bundle) -> Record:
    about = bundle.manifest
    if about.role != "quantized":
        raise UsageError(
            f"{bundle.path} is the {about.role} bundle, in {about.precision}: there is nothing quantized to explain. "
            f"Take the one whose name has 'quantized'."
        )
    content = read_member(bundle, MEMBER)
    if content is None:
        raise UsageError(
            f"{bundle.path} has no {MEMBER}: it was built by an edgekit that did not keep it. Build it again."
        )
    try:
        return Record.model_validate_json(content)
    except ValueError as error:
        raise UsageError(f"{bundle.path}: its {MEMBER} is of another version of edgekit. Build it again.") from error


def _float_bundle(quantized: Bundle, given: Path | None) -> Bundle | None:
    """The float bundle to hold the quantized one against."""
    about = quantized.manifest
    if given is None:
        stem = f"{about.model}-{about.target}-{about.backend}-float"
        near = [quantized.path.with_name(f"{stem}-{precision}.edge") for precision in ("fp32", "fp16")]
        given = next((path for path in near if path.exists()), None)
        if given is None:
            return None
    other = open_bundle(given)
    same = (other.manifest.model, other.manifest.backend) == (about.model, about.backend)
    if other.manifest.role != "float" or not same:
        seen = f"{other.manifest.model}, {other.manifest.backend}, {other.manifest.role}"
        raise UsageError(f"{given} is {seen}; what is needed is {about.model}, {about.backend}, float.")
    return other


def _feeds(bundle: Bundle, inputs: Path | None) -> list[Feed]:
    """Single inferences: of the file's samples, or of the golden ones."""
    from edgekit.agent import arrays
    from edgekit.agent.infer import Samples, batch_size

    described = bundle.manifest.model_dump(mode="json")
    names = [entry.name for entry in bundle.manifest.inputs]
    try:
        sources = arrays.read(str(inputs), names) if inputs else list(read_golden(bundle, "inputs"))
        samples, size = Samples(sources, described), batch_size(described, 1)
        return [samples.chunk(start, size) for start in range(0, min(samples.count, SAMPLES * size), size)]
    except Failure as failure:
        kind = IntegrityError if failure.code == INTEGRITY else UsageError
        raise kind(str(failure)) from failure


def _look(bundle: Bundle, folder: Path, record: Record) -> Look:
    extract_model(bundle, folder)
    return look_at(bundle.manifest.backend, folder, bundle.manifest.model_dump(mode="json"), record)


@dataclass
class _Plan:
    """A runtime's plan by layers: the first operator of each kernel and those that come along."""

    kernels: dict[str, list[Kernel]] = field(default_factory=lambda: defaultdict(list))
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conversions: list[Kernel] = field(default_factory=list)
    layouts: list[Kernel] = field(default_factory=list)
    unknown: list[Kernel] = field(default_factory=list)

    @classmethod
    def of(cls, kernels: Iterable[Kernel], record: Record) -> _Plan:
        """Sort the kernels; an activation whose operator has no kernel was taken along by its own."""
        kernels = list(kernels)
        computed = {name for kernel in kernels for name in kernel.operators}
        by_name, makers = {o.name: o for o in record.operators}, record.makers()
        order = {operator.name: place for place, operator in enumerate(record.operators)}
        found = cls()
        for kernel in kernels:
            if kernel.kind == "conversion":
                found.conversions.append(kernel)
            elif kernel.kind == "layout":
                found.layouts.append(kernel)
            elif not kernel.operators:
                found.unknown.append(kernel)
            else:
                names = sorted(kernel.operators, key=order.__getitem__)
                head = by_name[names[0]]
                while head.type in FUSED and head.inputs and head.inputs[0] in makers:
                    before = makers[head.inputs[0]]
                    if before.name in computed:
                        break
                    head = before
                    names.insert(0, before.name)
                known = found.members.get(head.name, ())
                found.members[head.name] = tuple(dict.fromkeys((*known, *names)))
                found.kernels[head.name].append(kernel)
        found.follow(record)
        return found

    def follow(self, record: Record) -> None:
        """Activations without a kernel of their own belong to the layer before them."""
        owner = {name: head for head, names in self.members.items() for name in names}
        makers = record.makers()
        for operator in record.operators:
            before = makers.get(operator.inputs[0]) if operator.inputs else None
            if operator.name not in owner and operator.type in FUSED and before and before.name in owner:
                owner[operator.name] = owner[before.name]
                self.members[owner[before.name]] += (operator.name,)

    def seconds(self, head: str) -> float | None:
        """The time of a layer, None where the runtime does not tell."""
        return total(self.kernels[head]) if head in self.kernels else None

    def runs(self, head: str) -> str:
        """`int8`, `float` or `mixed`."""
        kinds = {kernel.kind for kernel in self.kernels[head]}
        return "mixed" if len(kinds) > 1 else kinds.pop()


def total(kernels: Sequence[Kernel]) -> float | None:
    """The sum of their times, None where there is none."""
    known = [kernel.seconds for kernel in kernels if kernel.seconds is not None]
    return sum(known) if known else None


@dataclass
class _Fidelity:
    """Per tensor: signal, noise, and how much of the float values lies outside of the grid's range."""

    snr_db: dict[str, float] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)


def _fidelity(seen: Look, reference: Look, feeds: Sequence[Feed], record: Record) -> _Fidelity:
    """Run both, tensor by tensor; nothing but sums is kept from one sample to the next."""
    probe, float_probe = seen.probe(), reference.probe()
    signal: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    outside: dict[str, float] = defaultdict(float)
    for feed in feeds:
        floats, values = float_probe(feed), probe(feed)
        for name in floats.keys() & values.keys():
            if floats[name].dtype.kind != "f":
                continue
            expected = floats[name].astype(np.float64)
            got = _laid_out(values[name].astype(np.float64), expected)
            if got is None:
                continue
            signal[name] += float((expected**2).sum())
            noise[name] += float(((got - expected) ** 2).sum())
            limits = record.spec.tensors.get(name)
            if limits is not None:
                slack = (limits.high - limits.low) / 510  # half a step: rounded, not clipped
                beyond = (expected < limits.low - slack) | (expected > limits.high + slack)
                outside[name] += float(beyond.mean()) / len(feeds)
    ratios = {name: _decibel(signal[name], noise[name]) for name in signal}
    return _Fidelity({name: db for name, db in ratios.items() if db is not None}, dict(outside))


def _decibel(signal: float, noise: float) -> float | None:
    if signal == 0:
        return None
    return min(10 * math.log10(signal / noise), 200.0) if noise else 200.0


def _laid_out(values: npt.NDArray[Any], like: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """`values` in the shape of `like`, None where they don't hold as many."""
    if values.shape == like.shape:
        return values
    return values.reshape(like.shape) if values.size == like.size else None


@dataclass(frozen=True)
class _Story:
    """Everything that was seen, to be told."""

    bundle: Bundle
    other: Bundle | None
    record: Record
    plan: _Plan
    float_plan: _Plan | None
    fidelity: _Fidelity
    threshold_db: float

    def told(self, samples: int, timed: Timed | None) -> Explanation:
        """The explanation."""
        about = self.bundle.manifest
        layers = tuple(self.layer(operator) for operator in self.record.operators if operator.name in self.plan.kernels)
        whole = sum(layer.runs == "int8" for layer in layers)
        outputs = [self.fidelity.snr_db[e.name] for e in about.outputs if e.name in self.fidelity.snr_db]
        seen = Explanation(
            bundle=str(self.bundle.path),
            sha256=self.bundle.sha256,
            model=about.model,
            target=about.target,
            backend=about.backend,
            precision=about.precision,
            runtime=_runtime(about.backend),
            against=self.other.path.name if self.other else None,
            samples=samples,
            int8_layers=whole,
            float_layers=len(layers) - whole,
            int8_share=whole / len(layers) if layers else 0.0,
            conversions=len(self.plan.conversions),
            conversion_seconds=total(self.plan.conversions),
            layout_seconds=total(self.plan.layouts),
            layers=layers,
            islands=tuple(self.islands(layers)),
            threshold_db=self.threshold_db,
            first_divergent=self.first_divergent(layers),
            largest_drop=self.largest_drop(layers),
            output_snr_db=min(outputs) if outputs else None,
            latency=timed,
            advice=(),
            notes=tuple(self.notes()),
        )
        return seen.model_copy(update={"advice": tuple(advice(seen))})

    def layer(self, operator: Operator) -> Layer:
        """One row."""
        head = operator.name
        members, kernels = self.plan.members[head], self.plan.kernels[head]
        runs = self.plan.runs(head)
        tensor = self.tensor(head)
        return Layer(
            name=head,
            type=operator.type,
            with_it=tuple(name for name in members if name != head),
            runs=runs,  # type: ignore[arg-type]
            kernels=tuple(dict.fromkeys(kernel.name for kernel in kernels)),
            reason=None if runs == "int8" else self.reason(operator, kernels),
            snr_db=self.fidelity.snr_db.get(tensor) if tensor else None,
            clipped=self.fidelity.clipped.get(tensor) if tensor else None,
            seconds=self.plan.seconds(head),
            float_seconds=self.float_plan.seconds(head) if self.float_plan else None,
        )

    def tensor(self, head: str) -> str | None:
        """The layer's output: the last of its members' that was compared."""
        by_name = {operator.name: operator for operator in self.record.operators}
        made = [name for member in self.plan.members[head] for name in by_name[member].outputs]
        return next((name for name in reversed(made) if name in self.fidelity.snr_db), None)

    def reason(self, operator: Operator, kernels: Sequence[Kernel]) -> str:
        """Why a layer is in float: `quantize` decided so, or the runtime did."""
        backend = self.bundle.manifest.backend
        planned = self.record.spec.is_float(operator.name, backend)
        if planned:
            return planned
        names = " and ".join(sorted({kernel.name for kernel in kernels if kernel.kind == "float"}))
        if operator.name in self.record.spec.nodes:
            return f"{backend} computes it with {names} in float, though its tensors are quantized"
        return f"{operator.type} is not in the quantization plan"

    def islands(self, layers: Sequence[Layer]) -> list[Island]:
        """Float layers that touch each other, in the graph's order."""
        makers = self.record.makers()
        owner = {name: head for head, names in self.plan.members.items() for name in names}
        by_name = {operator.name: operator for operator in self.record.operators}
        island = {layer.name: {layer.name} for layer in layers if layer.runs != "int8"}
        for head in list(island):
            for tensor in (name for member in self.plan.members[head] for name in by_name[member].inputs):
                before = owner.get(makers[tensor].name) if tensor in makers else None
                if before in island and island[before] is not island[head]:
                    joined = island[before] | island[head]
                    island.update(dict.fromkeys(joined, joined))
        found = []
        for group in dict.fromkeys(frozenset(names) for names in island.values()):
            inside = [layer for layer in layers if layer.name in group]
            causes = dict.fromkeys(f"{layer.name}: {layer.reason}" for layer in inside)
            known = [layer.seconds for layer in inside if layer.seconds is not None]
            names = tuple(layer.name for layer in inside)
            found.append(Island(layers=names, causes=tuple(causes), seconds=sum(known) if known else None))
        return found

    def first_divergent(self, layers: Sequence[Layer]) -> Divergence | None:
        """The first layer, in the graph's order, whose output is below the threshold."""
        for layer in layers:
            if layer.snr_db is not None and layer.snr_db < self.threshold_db:
                return Divergence(layer=layer.name, snr_db=layer.snr_db, before_db=self.before(layer.name))
        return None

    def largest_drop(self, layers: Sequence[Layer]) -> Divergence | None:
        """The layer that loses most against the noisiest of its inputs."""
        drops = []
        for layer in layers:
            before = self.before(layer.name)
            if layer.snr_db is not None and before is not None and before > layer.snr_db:
                drops.append((before - layer.snr_db, layer, before))
        if not drops:
            return None
        _, layer, before = max(drops, key=lambda drop: drop[0])
        return Divergence(layer=layer.name, snr_db=layer.snr_db or 0.0, before_db=before)

    def before(self, head: str) -> float | None:
        """The lowest signal-to-noise ratio among a layer's inputs, None where none was compared."""
        by_name = {operator.name: operator for operator in self.record.operators}
        names = [name for member in self.plan.members[head] for name in by_name[member].inputs]
        own = {name for member in self.plan.members[head] for name in by_name[member].outputs}
        known = [self.fidelity.snr_db[name] for name in names if name in self.fidelity.snr_db and name not in own]
        return min(known) if known else None

    def notes(self) -> list[str]:
        """What limits what was seen."""
        about, found = self.bundle.manifest, []
        if self.other is None:
            found.append("no float bundle lies beside this one: nothing was compared. Give one with --against.")
        if about.backend == "litert":
            outside = sum("builtin" in kernel.name for kernels in self.plan.kernels.values() for kernel in kernels)
            found.append("LiteRT tells no times of single operators")
            if outside:
                found.append(f"{outside} operators run outside of XNNPACK, on LiteRT's builtin kernels")
        if self.plan.unknown:
            names = ", ".join(dict.fromkeys(kernel.name for kernel in self.plan.unknown))
            found.append(f"{len(self.plan.unknown)} kernels belong to no operator of the source: {names}")
        if not self.runs_here():
            found.append(f"looked at on {platform.machine()}; on {about.target} the runtime may decide otherwise")
        return found

    def runs_here(self) -> bool:
        """Whether the target's architecture is this machine's, as far as its name tells."""
        from edgekit.errors import EdgekitError
        from edgekit.target import load_target

        try:
            return load_target(self.bundle.manifest.target).arch == platform.machine()
        except EdgekitError:  # a target of the user's own: its file is not here
            return True


def _runtime(backend: str) -> str:
    from importlib import metadata

    packages: Mapping[str, str] = {"litert": "ai-edge-litert"}
    package = packages.get(backend, backend)
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
