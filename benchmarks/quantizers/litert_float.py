"""litert-torch's conversion of a float network, nothing else. Usage: litert_float.py NAME OUT.tflite."""

import sys

import litert_torch
import torch
from networks import SHAPE, build


def main(name: str, out: str) -> None:
    """Convert at batch 1."""
    litert_torch.convert(build(name), (torch.zeros(1, *SHAPE),)).export(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
