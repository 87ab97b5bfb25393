"""NVIDIA modelopt on an ONNX graph: int8, the rest in fp32. Usage: modelopt_int8.py MODEL DATA.npz OUT."""

import sys

import numpy as np
from modelopt.onnx.quantization import quantize
from samples import batches


def main(model: str, data: str, out: str) -> None:
    """Quantize for TensorRT's explicit Q/DQ."""
    images = np.concatenate(list(batches(data, 1)))
    settings = {"quantize_mode": "int8", "calibration_eps": ["cpu"], "high_precision_dtype": "fp32"}
    quantize(model, calibration_data=images, output_path=out, **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
