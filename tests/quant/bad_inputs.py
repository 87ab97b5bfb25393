"""The road from an ONNX file to what each runtime gets, as a run takes it, without a device or a report."""

from dataclasses import replace

import numpy as np
import onnx

from edgekit.assess import Oracle, assess
from edgekit.backends import BACKENDS, Built, Job
from edgekit.building import _whole_batches, contained
from edgekit.data import DataSet, Preprocess, Split, check_against
from edgekit.errors import BuildError
from edgekit.registry import resolve
from edgekit.sources import load_model
from edgekit.stages.quantize import Quantize
from edgekit.target import BackendFacts
from edgekit.testing.subjects import Lent, host

RUNTIMES = ("onnxruntime", "openvino", "tensorrt")
FACTS = {
    "onnxruntime": BackendFacts(grid="affine"),
    "openvino": BackendFacts(grid="affine"),
    "tensorrt": BackendFacts(grid="symmetric", built_on="device"),
}


def dataset(*splits, **named):
    """Splits of arrays, or of dicts of arrays; what is not named calibrates and is evaluated."""
    named = named or {"calibration": splits[0], "test": splits[0]}
    made = {}
    for name, inputs in named.items():
        count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
        made[name] = Split(name, inputs, None, tuple(f"{name}/{i}" for i in range(count)), Preprocess())
    return DataSet("made", made, task="none", sha256="made")


def quantized(proto, data, folder, **settings):
    """The model after `quantize` and the check after it."""
    path = folder / "net.onnx"
    onnx.save(proto, path)
    model = load_model(str(path))
    check_against(data, model.inputs, model.outputs)
    oracle = Oracle.of(model, data)
    assert oracle.outputs
    done = Quantize(**settings).apply(model, Lent(folder, data))
    return replace(done, history=(*done.history[:-1], assess(done, done.history[-1], oracle))), oracle


def built(model, oracle, folder, backends=RUNTIMES, role="quantized"):
    """What each backend made of the model, or the reason why it made nothing."""
    found = {}
    count = _whole_batches(model, 4)
    samples = tuple(np.resize(x[:count], (count, *x.shape[1:])) for x in oracle.inputs)
    for name in backends:
        backend = resolve("backend", name, BACKENDS, "edgekit.backends")()
        work = folder / f"{name}-{role}"
        work.mkdir(exist_ok=True)
        target = host(name)
        precision = "int8" if role == "quantized" else "fp32"
        source = model if role == "quantized" else model.reference
        try:
            job = Job(source, role, precision, target, FACTS[name], work, samples)
            found[name] = contained(backend, job, backend.build)
        except BuildError as error:
            found[name] = str(error)
    return found


def through(proto, data, folder, least_db=20.0, **settings):
    """The whole road; the step, and what the backends made, after asking that all of it is right."""
    model, oracle = quantized(proto, data, folder, **settings)
    step = model.history[-1]
    assert step.snr_db is not None and step.snr_db >= least_db, step
    for role in ("reference", "quantized"):
        made = built(model, oracle, folder, role=role)
        for name, result in made.items():
            assert isinstance(result, Built), (role, name, result)
            assert not any("Error" in note for note in result.notes)
    return step, made
