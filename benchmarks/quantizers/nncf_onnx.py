"""NNCF on an ONNX graph. Usage: nncf_onnx.py MODEL DATA.npz OUT BIAS PRESET.

BIAS is `fast` or `full`. PRESET: `performance`, NNCF's default, has symmetric activations, `mixed` asymmetric ones.
"""

import sys

import nncf
import onnx
from samples import batches, count


def main(model: str, data: str, out: str, bias: str, preset: str) -> None:
    """Quantize with one bias correction or the other."""
    source = onnx.load(model)
    name = source.graph.input[0].name
    quantized = nncf.quantize(
        source,
        nncf.Dataset([{name: image} for image in batches(data, 1)]),
        preset=nncf.QuantizationPreset(preset),
        subset_size=count(data),
        fast_bias_correction=bias == "fast",
    )
    onnx.save(quantized, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
