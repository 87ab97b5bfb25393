"""A TensorRT engine from an emitted ONNX graph: built once for a model, a version and a GPU, then kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from ..failures import USAGE, Failure
from ..unpack import cache_folder


def engine(trt: Any, log: Any, gpu: str, path: Path, manifest: dict[str, Any]) -> bytes:
    """The engine for the graph at `path`, from the cache where it was built before."""
    sparse = bool(manifest["runner"].get("sparse"))
    about = f"{trt.__version__} {gpu}" + (" sparse" if sparse else "")
    key = hashlib.sha256(path.read_bytes() + about.encode()).hexdigest()
    kept = cache_folder() / "engines" / f"{key}.engine"
    if kept.is_file():
        return kept.read_bytes()
    content = bytes(build(trt, log, path.read_bytes(), manifest["runner"]["shapes"], sparse))
    kept.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=kept.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, kept)
    except BaseException:  # a full disk, above all
        os.unlink(temporary)
        raise
    return content


def build(trt: Any, log: Any, graph: bytes, shapes: dict[str, Any], sparse: bool = False) -> Any:
    """A strongly typed engine for the GPU that is here, without TF32: each operator in the type that the graph says.

    `sparse`: kernels that skip zeros are tried for weights of which two of four are zero.
    """
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise Failure(USAGE, f"TensorRT {trt.__version__} cannot parse the model: {errors}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if any(-1 in tuple(network.get_input(i).shape) for i in range(network.num_inputs)):
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Failure(USAGE, f"TensorRT {trt.__version__} could not build an engine: its messages stand above")
    return engine
