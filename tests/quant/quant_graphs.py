"""Small graphs, random but fixed, and the fp32 outputs that quantized ones are compared with."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class Builder:
    """Collects nodes and random weights of one graph."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name, *shape, scale=None):
        fan = int(np.prod(shape[1:])) or 1
        value = self.rng.standard_normal(shape) * (scale or (2 / fan) ** 0.5)
        return self.constant(name, value.astype(np.float32))

    def add(self, op, inputs, output, name=None, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or output, **attributes))
        return output

    def conv(self, x, name, out, inputs, kernel=3, groups=1, bias=True, **more):
        weight = self.weight(f"{name}.weight", out, inputs // groups, kernel, kernel)
        extra = [self.weight(f"{name}.bias", out, scale=0.2)] if bias else []
        pads = more.pop("pads", [kernel // 2] * 4)
        return self.add("Conv", [x, weight, *extra], name, kernel_shape=[kernel] * 2, pads=pads, group=groups, **more)

    def model(self, inputs, outputs, opset=18):
        values = [[helper.make_tensor_value_info(n, FLOAT, s) for n, s in part.items()] for part in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, "net", *values, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return onnx.shape_inference.infer_shapes(made)


def residual_net(seed=0, opset=18):
    """Stem, depthwise block with Clip and a gate, residual Add, pooling, Concat, Pad, classifier."""
    b = Builder(seed)
    b.conv("x", "stem", 8, 3)
    b.add("Relu", ["stem"], "stem_relu")
    b.conv("stem_relu", "depthwise", 8, 8, groups=8)
    low, high = b.constant("zero", np.float32(0)), b.constant("six", np.float32(6))
    b.add("Clip", ["depthwise", low, high], "depthwise_clip")
    b.add("GlobalAveragePool", ["depthwise_clip"], "squeeze")
    b.conv("squeeze", "gate_conv", 8, 8, kernel=1)
    b.add("Sigmoid", ["gate_conv"], "gate")
    b.add("Mul", ["depthwise_clip", "gate"], "gated")
    b.conv("gated", "project", 8, 8, kernel=1)
    b.add("Add", ["project", "stem_relu"], "sum")
    b.add("Relu", ["sum"], "sum_relu")
    b.add("MaxPool", ["sum_relu"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    b.conv("pool", "branch", 8, 8, bias=False)
    b.add("Concat", ["pool", "branch"], "both", axis=1)
    b.add("Pad", ["both", b.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))], "padded")
    b.conv("padded", "head", 16, 16, kernel=1)
    b.add("Relu", ["head"], "head_relu")
    b.add("GlobalAveragePool", ["head_relu"], "mean")
    b.add("Flatten", ["mean"], "flat", axis=1)
    b.weight("fc.weight", 10, 16)
    b.weight("fc.bias", 10, scale=0.2)
    b.add("Gemm", ["flat", "fc.weight", "fc.bias"], "y", name="fc", transB=1)
    return b.model({"x": ["batch", 3, 12, 12]}, {"y": ["batch", 10]}, opset)


def samples(count=64, seed=1, shape=(3, 12, 12)):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def stream(array, size=16):
    return lambda: ((array[i : i + size],) for i in range(0, len(array), size))


def session(proto, optimize=True):
    """By the kernels that the processor has; where they overflow sums of 8-bit products, by those in float."""
    import onnxruntime as ort

    from edgekit.agent.infer import IN_FLOAT
    from edgekit.graph.execute import overflows

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if overflows(proto):
        options.add_session_config_entry(*IN_FLOAT)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto, x, optimize=True):
    made = session(proto, optimize)
    return made.run(None, {made.get_inputs()[0].name: x})[0]


def snr(wanted, seen):
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - seen).sum())


def values(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
