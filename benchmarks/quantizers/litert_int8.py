"""litert-torch, then ai-edge-quantizer's static int8. Usage: litert_int8.py NAME DATA.npz OUT.tflite."""

import sys
from pathlib import Path

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe
from networks import SHAPE, build
from samples import batches


def main(name: str, data: str, out: str) -> None:
    """Convert at batch 1, calibrate and quantize with the recipe that ai-edge-quantizer ships."""
    floats = Path(out).with_suffix(".float.tflite")
    litert_torch.convert(build(name), (torch.zeros(1, *SHAPE),)).export(str(floats))
    tool = quantizer.Quantizer(str(floats), recipe.static_wi8_ai8())
    signature, tensor = _signature(str(floats))
    ranges = tool.calibrate({signature: [{tensor: image} for image in batches(data, 1)]})
    tool.quantize(ranges).export_model(out, overwrite=True)


def _signature(path: str) -> tuple[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    ((name, about),) = Interpreter(path).get_signature_list().items()
    return name, about["inputs"][0]


if __name__ == "__main__":
    main(*sys.argv[1:])
