"""What a file answers to images. Usage: answers.py RUNTIME MODEL DATA.npz OUT.npy."""

import sys

import numpy as np
from runtimes import load
from samples import batches


def main(runtime: str, model: str, data: str, out: str) -> None:
    """Run in batches of 8."""
    file = load(runtime, model, 2)
    np.save(out, np.concatenate([file.run(file.prepare(x)) for x in batches(data, 8)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
