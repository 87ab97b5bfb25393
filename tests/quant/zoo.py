"""Twenty-four small architectures: the shapes of networks that people deploy, with few channels and random weights."""

from __future__ import annotations

import numpy as np
from quant_graphs import Builder

SIZE = 16
CLASSES = 6


class Net(Builder):
    """A `Builder` with blocks; every method gives the name of the tensor that it makes."""

    def __init__(self, seed):
        super().__init__(seed)
        self.count = 0

    def name(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def op(self, kind, *inputs, **attributes):
        return self.add(kind, list(inputs), self.name(kind.lower()), **attributes)

    def c(self, x, inputs, out, kernel=3, stride=1, groups=1, bias=True, **more):
        return self.conv(x, self.name("conv"), out, inputs, kernel, groups, bias, strides=[stride] * 2, **more)

    def relu(self, x):
        return self.op("Relu", x)

    def relu6(self, x):
        low, high = self.constant(self.name("low"), np.float32(0)), self.constant(self.name("high"), np.float32(6))
        return self.op("Clip", x, low, high)

    def silu(self, x):
        return self.op("Mul", x, self.op("Sigmoid", x))

    def norm(self, x, channels):
        name = self.name("norm")
        parts = [self.weight(f"{name}.{part}", channels, scale=0.3) for part in ("shift", "mean")]
        positive = [
            self.constant(f"{name}.{part}", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
            for part in ("scale", "var")
        ]
        return self.add("BatchNormalization", [x, positive[0], parts[0], parts[1], positive[1]], name)

    def ints(self, *values):
        return self.constant(self.name("ints"), np.array(values, np.int64))

    def reshape(self, x, *shape):
        return self.op("Reshape", x, self.ints(*shape))

    def dense(self, x, inputs, out, output=None):
        name = output or self.name("gemm")
        self.weight(f"{name}.weight", out, inputs)
        self.weight(f"{name}.bias", out, scale=0.2)
        return self.add("Gemm", [x, f"{name}.weight", f"{name}.bias"], name, transB=1)

    def linear(self, x, inputs, out):
        """A MatMul with an Add, as transformers are exported."""
        name = self.name("linear")
        self.constant(f"{name}.weight", (self.rng.standard_normal((inputs, out)) / inputs**0.5).astype(np.float32))
        product = self.add("MatMul", [x, f"{name}.weight"], name)
        return self.op("Add", product, self.weight(f"{name}.bias", out, scale=0.1))

    def layer_norm(self, x, size):
        name = self.name("layernorm")
        scale = self.constant(f"{name}.scale", self.rng.uniform(0.5, 1.5, size).astype(np.float32))
        return self.add("LayerNormalization", [x, scale, self.weight(f"{name}.bias", size, scale=0.2)], name, axis=-1)

    def gate(self, x, channels, kind="Sigmoid", **attributes):
        """Squeeze and excite."""
        squeezed = self.relu(self.c(self.op("GlobalAveragePool", x), channels, channels // 2, 1))
        return self.op("Mul", x, self.op(kind, self.c(squeezed, channels // 2, channels, 1), **attributes))

    def head(self, x, channels):
        """Global pooling and a classifier named `y`."""
        return self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, CLASSES, "y")

    def pool(self, x, kind="MaxPool", kernel=2, stride=2, **more):
        return self.op(kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, **more)

    def images(self, *output, channels=3, size=SIZE):
        shape = output or (CLASSES,)
        return self.model({"x": ["n", channels, size, size]}, {"y": ["n", *shape]})


def plain():
    b = Net(1)
    x = b.relu(b.c("x", 3, 8))
    x = b.pool(b.relu(b.c(x, 8, 12)))
    b.head(b.relu(b.c(x, 12, 16, bias=False)), 16)
    return b.images()


def resnet_basic():
    b = Net(2)
    x = b.relu(b.norm(b.c("x", 3, 8, bias=False), 8))
    for wide, stride in ((8, 1), (12, 2)):
        own = b.norm(
            b.c(b.relu(b.norm(b.c(x, 8, wide, stride=stride, bias=False), wide)), wide, wide, bias=False), wide
        )
        same = x if stride == 1 else b.norm(b.c(x, 8, wide, 1, stride, bias=False), wide)
        x = b.relu(b.op("Add", own, same))
    b.head(x, 12)
    return b.images()


def resnet_bottleneck():
    b = Net(3)
    x = b.relu(b.c("x", 3, 12, 5, 2))
    for _ in range(2):
        y = b.relu(b.c(x, 12, 4, 1))
        y = b.c(b.relu(b.c(y, 4, 4)), 4, 12, 1)
        x = b.relu(b.op("Add", y, x))
    b.head(x, 12)
    return b.images()


def mobilenet_v1():
    b = Net(4)
    x = b.relu(b.c("x", 3, 8, stride=2))
    for wide, out, stride in ((8, 12, 1), (12, 16, 2)):
        x = b.relu(b.c(b.relu(b.c(x, wide, wide, stride=stride, groups=wide)), wide, out, 1))
    b.head(x, 16)
    return b.images()


def mobilenet_v2():
    b = Net(5)
    x = b.relu6(b.c("x", 3, 8))
    for out in (8, 12):
        y = b.relu6(b.c(x, 8, 16, 1))
        y = b.c(b.relu6(b.c(y, 16, 16, groups=16, stride=1 if out == 8 else 2)), 16, out, 1)
        x = b.op("Add", x, y) if out == 8 else y
    b.head(b.relu6(b.c(x, 12, 16, 1)), 16)
    return b.images()


def mobilenet_v3():
    b = Net(6)
    x = b.op("HardSwish", b.c("x", 3, 8, stride=2))
    y = b.op("HardSwish", b.c(b.op("HardSwish", b.c(x, 8, 12, 1)), 12, 12, 5, groups=12))
    y = b.c(b.gate(y, 12, "HardSigmoid", alpha=1 / 6, beta=0.5), 12, 8, 1)
    b.head(b.op("HardSwish", b.c(b.op("Add", x, y), 8, 16, 1)), 16)
    return b.images()


def efficientnet():
    b = Net(7)
    x = b.silu(b.norm(b.c("x", 3, 8, stride=2, bias=False), 8))
    y = b.silu(b.c(b.silu(b.c(x, 8, 12, 1)), 12, 12, groups=12))
    y = b.c(b.gate(y, 12), 12, 8, 1)
    b.head(b.silu(b.c(b.op("Add", y, x), 8, 16, 1)), 16)
    return b.images()


def densenet():
    b = Net(8)
    x, wide = b.c("x", 3, 8), 8
    for _ in range(3):
        y = b.c(b.relu(b.norm(x, wide)), wide, 4)
        x, wide = b.op("Concat", x, y, axis=1), wide + 4
    x = b.pool(b.c(b.relu(b.norm(x, wide)), wide, 10, 1), "AveragePool")
    b.head(b.relu(b.norm(x, 10)), 10)
    return b.images()


def inception():
    b = Net(9)
    x = b.relu(b.c("x", 3, 8, stride=2))
    branches = [
        b.relu(b.c(x, 8, 4, 1)),
        b.relu(b.c(b.relu(b.c(x, 8, 4, 1)), 4, 6)),
        b.relu(b.c(b.relu(b.c(x, 8, 4, 1)), 4, 4, 5)),
        b.relu(b.c(b.pool(x, "AveragePool", 3, 1, pads=[1] * 4, count_include_pad=1), 8, 4, 1)),
        b.pool(x, kernel=3, stride=1, pads=[1] * 4),
    ]
    b.head(b.relu(b.c(b.op("Concat", *branches, axis=1), 26, 12, 1)), 12)
    return b.images()


def unet():
    b = Net(10)
    one = b.relu(b.c("x", 3, 6))
    two = b.relu(b.c(b.pool(one), 6, 8))
    three = b.relu(b.c(b.pool(two), 8, 12))
    name = b.name("up")
    weights = [b.weight(f"{name}.weight", 12, 8, 2, 2, scale=0.3), b.weight(f"{name}.bias", 8, scale=0.2)]
    up = b.add("ConvTranspose", [three, *weights], name, strides=[2, 2], kernel_shape=[2, 2])
    up = b.relu(b.c(b.op("Concat", up, two, axis=1), 16, 8))
    sizes = b.constant("sizes", np.array([1, 1, 2, 2], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    up = b.add("Resize", [up, "", sizes], b.name("resize"), **how)
    last = b.relu(b.c(b.op("Concat", up, one, axis=1), 14, 6))
    b.conv(last, "y", 2, 6, 1)
    return b.images(2, SIZE, SIZE)


def shufflenet():
    b = Net(11)
    x = b.relu(b.c("x", 3, 8, stride=2))
    y = b.relu(b.c(x, 8, 8, 1, groups=2))
    y = b.op("Transpose", b.reshape(y, -1, 2, 4, 8, 8), perm=[0, 2, 1, 3, 4])
    y = b.c(b.c(b.reshape(y, -1, 8, 8, 8), 8, 8, groups=8), 8, 8, 1, groups=2)
    b.head(b.relu(b.op("Add", x, y)), 8)
    return b.images()


def squeezenet():
    b = Net(12)
    x = b.pool(b.relu(b.c("x", 3, 8)), kernel=3, stride=2, ceil_mode=1)
    for _ in range(2):
        s = b.relu(b.c(x, 8, 4, 1))
        x = b.op("Concat", b.relu(b.c(s, 4, 4, 1)), b.relu(b.c(s, 4, 4)), axis=1)
    x = b.op("GlobalAveragePool", b.relu(b.c(x, 8, CLASSES, 1)))
    b.add("Flatten", [x], "y", axis=1)
    return b.images()


def vgg():
    b = Net(13)
    x = b.pool(b.relu(b.c(b.relu(b.c("x", 3, 6)), 6, 6)))
    x = b.pool(b.relu(b.c(b.relu(b.c(x, 6, 10)), 10, 10)))
    x = b.relu(b.dense(b.op("Flatten", x), 10 * 16, 20))
    b.dense(b.relu(b.dense(x, 20, 16)), 16, CLASSES, "y")
    return b.images()


def preactivation_resnet():
    b = Net(14)
    x = b.c("x", 3, 8)
    for _ in range(2):
        y = b.c(b.relu(b.norm(x, 8)), 8, 8)
        x = b.op("Add", x, b.c(b.relu(b.norm(y, 8)), 8, 8))
    b.head(b.relu(b.norm(x, 8)), 8)
    return b.images()


def leaky():
    b = Net(15)
    x = b.op("LeakyRelu", b.c("x", 3, 8, stride=2), alpha=0.1)
    slope = b.constant("slope", b.rng.uniform(0.05, 0.3, (8, 1, 1)).astype(np.float32))
    x = b.op("PRelu", b.c(x, 8, 8), slope)
    x = b.op("LeakyRelu", b.c(x, 8, 12, 1), alpha=0.2)
    b.head(b.op("Tanh", b.c(x, 12, 12)), 12)
    return b.images()


def waveform():
    b = Net(16)

    def conv(x, inputs, out, kernel, stride=1, **more):
        name = b.name("conv")
        weights = [b.weight(f"{name}.weight", out, inputs, kernel), b.weight(f"{name}.bias", out, scale=0.2)]
        pads = [more.get("dilations", [1])[0] * (kernel // 2)] * 2
        return b.add("Conv", [x, *weights], name, kernel_shape=[kernel], strides=[stride], pads=pads, **more)

    x = b.op("MaxPool", b.relu(conv("x", 2, 8, 5, 2)), kernel_shape=[2], strides=[2])
    x = b.op("Add", b.relu(conv(x, 8, 8, 3, dilations=[2])), x)
    x = b.op("GlobalAveragePool", b.relu(conv(x, 8, 12, 3)))
    b.dense(b.op("Flatten", x), 12, CLASSES, "y")
    return b.model({"x": ["n", 2, 64]}, {"y": ["n", CLASSES]})


def keyword_spotting():
    b = Net(17)
    x = b.relu(b.conv("x", "stem", 8, 1, 3, strides=[2, 1]))
    for _ in range(2):
        x = b.relu(b.c(b.relu(b.c(x, 8, 8, groups=8)), 8, 8, 1))
    b.dense(b.op("Flatten", b.pool(x, "AveragePool", 5, 5)), 32, 12, "scores")
    b.add("Softmax", ["scores"], "y", axis=1)
    return b.model({"x": ["n", 1, 20, 10]}, {"y": ["n", 12]})


def autoencoder():
    b = Net(18)
    x, wide = "x", 40
    for out in (24, 24, 4, 24, 24):
        x, wide = b.relu(b.dense(x, wide, out)), out
    b.dense(x, wide, 40, "y")
    return b.model({"x": ["n", 40]}, {"y": ["n", 40]})


def mixer():
    b = Net(19)
    x = b.c("x", 3, 12, 4, 4, pads=[0] * 4)
    x = b.op("Transpose", b.reshape(x, -1, 12, 16), perm=[0, 2, 1])
    for _ in range(2):
        y = b.op("Transpose", b.layer_norm(x, 12), perm=[0, 2, 1])
        y = b.linear(b.relu(b.linear(y, 16, 8)), 8, 16)
        x = b.op("Add", x, b.op("Transpose", y, perm=[0, 2, 1]))
        x = b.op("Add", x, b.linear(b.relu(b.linear(b.layer_norm(x, 12), 12, 24)), 24, 12))
    mean = b.op("ReduceMean", b.layer_norm(x, 12), b.ints(1), keepdims=0)
    b.dense(mean, 12, CLASSES, "y")
    return b.images()


def attention():
    b = Net(20)
    x = b.c("x", 3, 12, 4, 4, pads=[0] * 4)
    x = b.op("Transpose", b.reshape(x, -1, 12, 16), perm=[0, 2, 1])
    x = b.op("Add", x, b.constant("position", (b.rng.standard_normal((1, 16, 12)) / 3).astype(np.float32)))
    y = b.layer_norm(x, 12)

    def heads(part, perm):
        return b.op("Transpose", b.reshape(b.linear(part, 12, 12), -1, 16, 3, 4), perm=perm)

    queries, keys, values = heads(y, [0, 2, 1, 3]), heads(y, [0, 2, 3, 1]), heads(y, [0, 2, 1, 3])
    scores = b.op("Mul", b.op("MatMul", queries, keys), b.constant("half", np.float32(0.5)))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), values)
    mixed = b.reshape(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), -1, 16, 12)
    x = b.op("Add", x, b.linear(mixed, 12, 12))
    z = b.linear(b.layer_norm(x, 12), 12, 24)
    erf = b.op("Erf", b.op("Mul", z, b.constant("root", np.float32(2**-0.5))))
    gelu = b.op("Mul", b.op("Mul", z, b.op("Add", erf, b.constant("one", np.float32(1)))), "half")
    x = b.op("Add", x, b.linear(gelu, 24, 12))
    b.dense(b.op("ReduceMean", x, b.ints(1), keepdims=0), 12, CLASSES, "y")
    return b.images()


def segmentation():
    b = Net(21)
    x = b.relu(b.c("x", 3, 8, stride=2))
    rates = [
        b.relu(b.c(x, 8, 4, dilations=[rate] * 2, pads=[rate] * 4)) if rate else b.relu(b.c(x, 8, 4, 1))
        for rate in (0, 2, 4)
    ]
    x = b.c(b.op("Concat", *rates, axis=1), 12, 3, 1)
    sizes = b.constant("sizes", np.array([1, 1, 2, 2], np.float32))
    b.add("Resize", [x, "", sizes], "y", mode="linear", coordinate_transformation_mode="half_pixel")
    return b.images(3, SIZE, SIZE)


def group_norm():
    b = Net(22)
    x = b.c("x", 3, 8)

    def ones(name, channels):
        return b.constant(name, b.rng.uniform(0.5, 1.5, channels).astype(np.float32))

    x = b.relu(b.op("InstanceNormalization", x, ones("scale1", 8), b.weight("shift1", 8, scale=0.3)))
    x = b.reshape(b.c(x, 8, 8, stride=2), 0, 2, -1)
    x = b.op("InstanceNormalization", x, ones("scale2", 2), b.weight("shift2", 2, scale=0.3))
    x = b.relu(b.reshape(x, -1, 8, SIZE // 2, SIZE // 2))
    b.head(b.relu(b.c(x, 8, 10)), 10)
    return b.images()


def shared_weights():
    b = Net(23)
    left = b.op("Slice", "x", b.ints(0), b.ints(3), b.ints(1))
    right = b.op("Slice", "x", b.ints(3), b.ints(6), b.ints(1))
    one = b.relu(b.conv(left, "tower", 8, 3))
    other = b.relu(b.add("Conv", [right, "tower.weight", "tower.bias"], "twin", kernel_shape=[3, 3], pads=[1] * 4))
    b.head(b.relu(b.c(b.op("Concat", one, other, axis=1), 16, 10)), 10)
    return b.images(channels=6)


def split_slice_pad():
    b = Net(24)
    x = b.relu(b.c("x", 3, 8))
    b.nodes.append(_split(x, b.ints(4, 4)))
    y = b.op("Pad", b.c("low", 4, 4), b.ints(0, 0, 1, 0, 0, 0, 0, 1))
    y = b.op("Slice", y, b.ints(0, 0), b.ints(SIZE, SIZE), b.ints(2, 3))
    x = b.op("Concat", b.op("Mul", "high", y), "high", axis=1)
    x = b.op("Slice", x, b.ints(0, 0), b.ints(SIZE, SIZE), b.ints(2, 3), b.ints(2, 2))
    b.head(b.relu(b.c(b.op("Pad", x, b.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), 8, 8)), 8)
    return b.images()


def _split(x, sizes):
    from onnx import helper

    return helper.make_node("Split", [x, sizes], ["low", "high"], name="split", axis=1)


ZOO = {
    build.__name__: build
    for build in (
        plain, resnet_basic, resnet_bottleneck, mobilenet_v1, mobilenet_v2, mobilenet_v3, efficientnet, densenet,
        inception, unet, shufflenet, squeezenet, vgg, preactivation_resnet, leaky, waveform, keyword_spotting,
        autoencoder, mixer, attention, segmentation, group_norm, shared_weights, split_slice_pad,
    )
}  # fmt: skip
"""Name to a function that builds the graph: input `x`, output `y`, opset 18."""


def inputs(proto, count, seed=5):
    """Random samples for the network's input."""
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
