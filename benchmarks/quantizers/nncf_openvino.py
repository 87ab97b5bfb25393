"""NNCF on OpenVINO's graph of an ONNX file. Usage: nncf_openvino.py MODEL DATA.npz OUT.xml BIAS PRESET.

BIAS is `fast` or `full`. PRESET: `performance`, NNCF's default, has symmetric activations, `mixed` asymmetric ones.
"""

import sys

import nncf
import openvino as ov
from samples import batches, count


def main(model: str, data: str, out: str, bias: str, preset: str) -> None:
    """Quantize with one bias correction or the other."""
    quantized = nncf.quantize(
        ov.convert_model(model),  # `read_model` leaves biases in a form that NNCF does not correct
        nncf.Dataset(list(batches(data, 1))),
        preset=nncf.QuantizationPreset(preset),
        subset_size=count(data),
        fast_bias_correction=bias == "fast",
    )
    ov.save_model(quantized, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
