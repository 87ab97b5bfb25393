"""onnxruntime's `quantize_static`. Usage: ort_static.py MODEL DATA.npz OUT METHOD(MinMax|Percentile|Entropy) STRIDE.

STRIDE 0 is the default: every tensor of every image in memory at once. Else so many images at a time are turned into
histograms (`CalibStridedMinMax`), without which percentile and entropy do not fit for more than about 100 images.
"""

import sys

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from samples import batches


class Reader(CalibrationDataReader):
    """One image at a time; `set_range` and `len` are what strides ask for."""

    def __init__(self, name: str, path: str) -> None:
        self.feeds = [{name: image} for image in batches(path, 1)]
        self.left = iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these images."""
        self.left = iter(self.feeds[start_index:end_index])

    def get_next(self) -> dict | None:
        """The next image, or None."""
        return next(self.left, None)


def main(model: str, data: str, out: str, method: str, stride: str) -> None:
    """Quantize with u8 activations and per-channel s8 weights, as onnxruntime advises for x86 with VNNI."""
    source = onnx.load(model)
    quantize_static(
        source,
        out,
        Reader(source.graph.input[0].name, data),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options={"CalibStridedMinMax": int(stride)} if int(stride) else {},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
