"""EfficientNet-Lite0 made a fifth faster, and won back without labels from a few images.

    python benchmarks/label_free.py --images imagenet1k_sample.npz --work build/label_free --out benchmarks/results

`--images` holds JPEGs (`jpeg` bytes, `offset` `[n + 1]`). 256 of them, drawn at random, are all that `prune`, with a
budget in latency on ONNX Runtime, and `distill` may see, without labels; the others judge: agreement with the untouched
network's first choice, and the signal-to-noise ratio of the logits, with recovery and without. The gain in agreement is
paired by image, with its 95 % interval. Runs are kept under `--work`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from by_time import told

SEEN, LATENCY = 256, 0.8
DISTILL = {"epochs": 40, "batch_size": 32, "learning_rate": 0.01, "augment": "flip_shift", "held_out": 0.125}


def main() -> None:
    """Run what is missing, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/label_free"))
    parser.add_argument("--out", type=Path, help="folder for label_free.md and label_free.json")
    parser.add_argument("--epochs", type=int, default=DISTILL["epochs"])
    options = parser.parse_args()
    row = compared(options.images, options.work, {**DISTILL, "epochs": options.epochs})
    text = markdown(row)
    print(text)
    if options.out:
        (options.out / "label_free.md").write_text(text, encoding="utf-8")
        (options.out / "label_free.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def compared(images: Path, work: Path, distill: dict[str, Any]) -> dict[str, Any]:
    """Without recovery and with it."""
    base = prepared(images, work)
    judging = np.load(work / "images.npz")["test_x"]
    found, agrees = {}, {}
    for name, stages in (("pruned", []), ("recovered", [{"distill": distill}])):
        folder = work / name
        if stages and not folder.exists():  # the same pruned network, not one that was timed anew
            shutil.copytree(work / "pruned" / "work" / "1-prune", folder / "work" / "1-prune")
        report = told(base, folder, [{"prune": {"latency": LATENCY}}, *stages], 0)
        results = {one["role"]: one for one in report["results"]}
        top = {role: choices(folder / "models" / Path(results[role]["bundle"]).stem, judging) for role in results}
        agrees[name] = (top["float"] == top["reference"]).astype(float)
        ratio = next(p for p in results["float"]["paired"] if p["vs"] == "reference" and p["statistic"] == "p50")
        found[name] = {
            "agreement": float(np.mean(agrees[name])),
            "snr_db": results["float"]["snr_db"],
            "latency": ratio,
            "stages": report["stages"],
        }
    gain = agrees["recovered"] - agrees["pruned"]
    reach = 1.96 * float(np.std(gain, ddof=1)) / math.sqrt(len(gain))
    middle = float(np.mean(gain))
    return {**found, "images": len(gain), "gain": [middle, middle - reach, middle + reach], "distill": distill}


def choices(model: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The class that a network gives each image `[N, H, W, 3]`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    batches = np.array_split((images.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128, len(images) // 16)
    return np.concatenate([session.run(None, {name: batch})[0].argmax(1) for batch in batches])


def prepared(images: Path, work: Path) -> dict[str, Any]:
    """The recipe's model and data."""
    from PIL import Image

    work.mkdir(parents=True, exist_ok=True)
    held, data = np.load(images), work / "images.npz"
    if not data.exists():
        raw, ends = held["jpeg"].tobytes(), held["offset"]
        opened = (Image.open(io.BytesIO(raw[a:b])).convert("RGB") for a, b in pairwise(ends))
        squares = np.stack([np.asarray(image.resize((256, 256)))[16:240, 16:240] for image in opened])
        order = np.random.default_rng(0).permutation(len(squares))
        np.savez(data, train_x=squares[order[:SEEN]], test_x=squares[order[SEEN:]])
    source = Path(__file__).resolve().parent / "quantizers" / "networks.py"
    return {
        "model": {"source": f"{source}:lite0", "inputs": {"image": {"shape": ["batch", 3, 224, 224]}}},
        "data": {
            "source": str(data),
            "task": "none",
            "preprocess": {"scale": 1 / 128, "offset": -127 / 128, "layout": "NHWC", "to": "NCHW"},
        },
    }


def markdown(row: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# A fifth faster, recovered without labels",
        "",
        f"`benchmarks/label_free.py`: EfficientNet-Lite0 pruned to {LATENCY:.0%} of its latency on ONNX Runtime (fp32,",
        f"one thread) and distilled on the same {SEEN} images without labels; judged by {row['images']} others.",
        "",
        "| | latency ratio to the untouched network | agreement | signal-to-noise ratio |",
        "|---|---|---|---|",
    ]
    for name in ("pruned", "recovered"):
        one, ratio = row[name], row[name]["latency"]
        lines.append(
            f"| {name} | {ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] | {one['agreement']:.2%} | "
            f"{one['snr_db']:.2f} dB |"
        )
    gain = row["gain"]
    said = f"{100 * gain[0]:+.2f} points [{100 * gain[1]:+.2f}, {100 * gain[2]:+.2f}]"
    return "\n".join([*lines, "", f"Gain in agreement by recovery, paired by image: {said}."]) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
