"""AIMET on an ONNX graph, its defaults. Usage: aimet.py MODEL DATA.npz OUT."""

import sys

import onnx
from aimet_onnx.quantsim import QuantizationSimModel
from samples import batches


def main(model: str, data: str, out: str) -> None:
    """Simulate, compute encodings, write Q/DQ."""
    source = onnx.load(model)
    name = source.graph.input[0].name
    sim = QuantizationSimModel(source)
    sim.compute_encodings([{name: image} for image in batches(data, 1)])
    onnx.save(sim.to_onnx_qdq(), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
