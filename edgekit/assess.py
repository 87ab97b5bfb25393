"""The truth on the host after every stage: how far a model's outputs are from the reference's, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, UsageError
from edgekit.metrics import Evaluation, agreement, evaluate, snr_db
from edgekit.model import Model, OnnxModel, Step, TorchModel
from edgekit.scoring import Asked
from edgekit.scoring.evaluated import evaluate_task

if TYPE_CHECKING:
    from edgekit.data import DataSet, Split

Arrays = list[npt.NDArray[np.generic]]

CHECKED = 10_000
"""At most this many evenly spread samples of the evaluation split are looked at after a stage."""

BATCH = 64
HELPED = 0.001
"""An accuracy that rises by less than this (0.1 pp) after recovery training counts as no help."""


def outputs_of(model: Model, inputs: Arrays) -> Arrays:
    """What a model answers on the host: in fp32, or simulating the integers of a quantized one (affine grid)."""
    if isinstance(model, TorchModel):
        from edgekit.graph.execute import run_torch

        return list(run_torch(model.module, inputs, batch=BATCH))
    from edgekit.graph.execute import run_onnx

    if model.quant is None:
        return list(run_onnx(model.proto, inputs, batch=BATCH))
    from edgekit.quant.qdq import emit

    graph = emit(model.lowered("affine", "onnxruntime"), model.quant, "affine", "onnxruntime")
    return list(run_onnx(graph, inputs, batch=BATCH))


def classifies(outputs: Sequence[npt.NDArray[np.generic]]) -> bool:
    """Whether the outputs are `[N, classes]` scores: one output, two classes or more."""
    first = outputs[0]
    return len(outputs) == 1 and first.ndim >= 2 and first.shape[1] > 1 and first[0].size == first.shape[1]


def scores(outputs: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
    """The `[N, classes]` scores of a classifier."""
    return np.asarray(outputs[0], np.float32).reshape(len(outputs[0]), -1)


def are_probabilities(values: npt.NDArray[np.float32]) -> bool:
    """Whether a classifier already ends in a softmax: every row is non-negative and sums to one."""
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3))


@dataclass(frozen=True)
class Oracle:
    """The reference's answers on the evaluation split, computed once; everything is held against them."""

    model: OnnxModel
    data: DataSet
    split: Split

    @classmethod
    def of(cls, model: Model, data: DataSet) -> Oracle:
        """The oracle of a model's reference on the data's `test` split (the last split where there is none).

        Raises:
            UsageError: there is no sample to evaluate on.
        """
        split = data.splits.get("test") or list(data.splits.values())[-1]
        if not len(split):
            raise UsageError(f"data {data.name!r}: the split {split.name!r} is empty, nothing can be evaluated on it.")
        return cls(model.reference, data, split)

    @cached_property
    def inputs(self) -> Arrays:
        """The evaluation split as the model takes it."""
        return [*self.split.ready(self.model.inputs)]

    @cached_property
    def outputs(self) -> Arrays:
        """The reference's answers to `inputs`.

        Raises:
            UsageError: it cannot be run, or some answers are not finite, so that nothing can be held against them.
        """
        try:
            answers = outputs_of(self.model, self.inputs)
        except (EdgekitError, OSError, MemoryError):
            raise
        except Exception as error:  # each runtime has its own; the graph is still as the user gave it
            seen = " ".join(str(error).split())[:300]
            raise UsageError(f"model {self.model.name!r} cannot be run on the data: {seen}") from error
        for spec, values in zip(self.model.outputs, answers, strict=True):
            self._check(spec.name, values)
        return answers

    def _check(self, output: str, values: npt.NDArray[np.generic]) -> None:
        gives = f"model {self.model.name!r} gives"
        if values.ndim == 0 or len(values) != len(self.split):
            raise UsageError(
                f"{gives} {list(values.shape)} at {output!r} for {len(self.split)} samples. The first axis of every "
                "output must be that of the samples."
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            broken = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            raise UsageError(
                f"{gives} NaN or infinity at {output!r} for sample {self.split.ids[int(np.argmax(broken))]}. "
                f"{self._suspects()}"
            )

    def _suspects(self) -> str:
        """The weights that are not finite, for a message, or what else to look at."""
        import onnx

        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        broken = [
            tensor.name
            for tensor in self.model.proto.graph.initializer
            if tensor.data_type in floats and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all()
        ]
        if not broken:
            return "Check `preprocess` of the data; all weights of the model are finite."
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        named = ", ".join(map(repr, broken[:3]))
        return f"Its weights {named}{more} hold NaN or infinity: export the model again."

    @cached_property
    def classification(self) -> bool:
        """Whether task metrics mean something here."""
        return self.data.task == "classification" and classifies(self.outputs)

    @cached_property
    def probabilities(self) -> bool:
        """Whether the reference gives probabilities rather than logits."""
        return self.classification and are_probabilities(scores(self.outputs))

    def evaluate(self, outputs: Sequence[npt.NDArray[np.generic]]) -> Evaluation | None:
        """Task metrics of answers to the whole split; None for a task without any."""
        asked = Asked(outputs, self.outputs, self.split.truth, lambda: self.inputs)
        found = evaluate_task(self.data, asked)
        if not self.classification:
            return found
        classes = self.data.classes
        seen = evaluate(scores(outputs), self.split.labels, probabilities=self.probabilities, classes=classes)
        return seen if found is None else replace(seen, user=found.user, notes=found.notes)

    def snr_db(self, outputs: Sequence[npt.NDArray[np.generic]]) -> float | None:
        """Signal-to-noise ratio of answers to the whole split, in dB."""
        return snr_db([np.asarray(o) for o in self.outputs], [np.asarray(o) for o in outputs])

    def agreement(self, outputs: Sequence[npt.NDArray[np.generic]]) -> float | None:
        """The share of samples on which the first choice is the reference's."""
        return agreement(scores(self.outputs), scores(outputs)).value if self.classification else None

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The reference's own metrics; None for a task, or data, without any."""
        seen = self.evaluate(self.outputs) if self.scored or self.data.metrics else None
        if seen is not None and seen.notes:
            raise UsageError(f"data {self.data.name!r}: the model as it came cannot be scored: {'; '.join(seen.notes)}")
        return seen

    @property
    def scored(self) -> bool:
        """Whether there are labels, or a task that needs none."""
        return self.split.labels is not None or self.split.truth is not None or self.data.task == "embedding"

    @cached_property
    def step(self) -> Step:
        """The reference as the step before the first."""
        seen = self.evaluation
        macs, parameters = _spent(self.model)
        metrics = {} if seen is None else flat(seen)
        return Step("source", {}, 0.0, metrics=metrics, macs=macs, parameters=parameters)


def assess(model: Model, step: Step, oracle: Oracle) -> Step:
    """The step with what can be said of the model on the host: distance from the reference, metrics, cost."""
    every = -(-len(oracle.split) // CHECKED)
    outputs = outputs_of(model, [x[::every] for x in oracle.inputs])
    part = replace(oracle, split=oracle.split.take(np.arange(0, len(oracle.split), every))) if every > 1 else oracle
    if part is not oracle:
        part.__dict__["outputs"] = [y[::every] for y in oracle.outputs]
    seen = part.evaluate(outputs)
    metrics = {} if seen is None else flat(seen)
    macs, parameters = _spent(model)
    return replace(
        step,
        snr_db=part.snr_db(outputs),
        agreement=part.agreement(outputs),
        metrics=metrics,
        macs=macs,
        parameters=parameters,
    )


def _spent(model: Model) -> tuple[int | None, int]:
    """Multiply-accumulates of one sample (None: not known), and parameters."""
    if isinstance(model, TorchModel):
        import torch

        from edgekit.prune.cost import count_macs
        from edgekit.prune.shapes import parameters

        inputs = tuple(torch.zeros(spec.sized(1), dtype=getattr(torch, spec.dtype)) for spec in model.inputs)
        return count_macs(model.module, inputs), parameters(model.module)
    from edgekit.graph.cost import cost

    found = cost(model.proto)
    return found.macs, found.parameters


def flat(seen: Evaluation) -> dict[str, float]:
    """The plain numbers of an evaluation, by name."""
    found = {name: getattr(seen.metrics, name) for name in ("precision", "recall", "f1", "loss")}
    if seen.metrics.accuracy is not None:
        found["accuracy"] = seen.metrics.accuracy.value
    found |= {name: score.value for name, score in seen.metrics.scores.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def did_not_help(before: Step, after: Step) -> str | None:
    """One plain line where a stage did not do what it was for, else None. Bundles judge `quantize`."""
    if after.name in ("prune", "factorize") and before.macs and after.macs and after.macs >= before.macs:
        return f"{after.name} did not help: {after.macs:,} multiply-accumulates after it, {before.macs:,} before."
    was, now = before.metrics.get("accuracy"), after.metrics.get("accuracy")
    if after.name == "qat" and after.config.get("grid", "affine") != "affine":
        return _in_its_grid(after)
    if after.name in ("distill", "qat"):
        if was is not None and now is not None and now - was < HELPED:
            return f"{after.name} did not help: accuracy {100 * now:.2f} % after it, {100 * was:.2f} % before."
        if now is None and None not in (before.snr_db, after.snr_db) and after.snr_db <= before.snr_db:  # type: ignore[operator]
            return (
                f"{after.name} did not help: output {after.snr_db:.1f} dB from the reference, "
                f"{before.snr_db:.1f} dB before."
            )
    return None


def _in_its_grid(step: Step) -> str | None:
    """The step's own line: it trained for another grid than the one that is assessed here."""
    return next((f"{step.name} {note}." for note in step.notes if note.startswith("did not help")), None)
