"""A small transformer of tokens and their mask, random but fixed."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from quant_graphs import Builder

from edgekit.graph.normalise import normalise

WIDTH, LENGTH, WORDS = 64, 8, 1200


def transformer(seed: int = 0, loud: float = 1.0) -> onnx.ModelProto:
    """Embeddings, one block of masked attention and a dense layer, a Gemm at the end; tokens and a mask come in.

    `loud` multiplies two channels of the embedding: the outliers that transformers have.
    """
    b = Builder(seed)
    table = b.rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    table[:, :2] *= loud
    b.add("Gather", [b.constant("table", table), "ids"], "words")
    b.add("Cast", ["mask"], "given", to=TensorProto.FLOAT)
    b.add("Sub", [b.constant("one", np.float32(1)), "given"], "absent")
    b.add("Mul", ["absent", b.constant("huge", np.float32(-1e30))], "forbidden")
    b.add("Unsqueeze", ["forbidden", b.constant("first", np.array([1], np.int64))], "scores_mask")
    scale = b.constant("gamma", np.ones(WIDTH, np.float32))
    b.add("LayerNormalization", ["words", scale], "normed", axis=-1)
    for name in ("query", "key", "value"):
        b.add("MatMul", ["normed", b.weight(f"{name}.weight", WIDTH, WIDTH)], name)
    b.add("Transpose", ["key"], "turned", perm=[0, 2, 1])
    b.add("MatMul", ["query", "turned"], "products")
    b.add("Mul", ["products", b.constant("factor", np.float32(WIDTH**-0.5))], "scaled")
    b.add("Add", ["scaled", "scores_mask"], "scores")
    b.add("Softmax", ["scores"], "shares", axis=-1)
    b.add("MatMul", ["shares", "value"], "attended")
    b.add("MatMul", ["attended", b.weight("out.weight", WIDTH, WIDTH)], "projected")
    b.add("Add", ["projected", "words"], "sum")
    b.add("ReduceMean", ["sum", "first"], "mean", keepdims=0)
    weight, bias = b.weight("fc.weight", 96, WIDTH), b.weight("fc.bias", 96, scale=0.2)
    b.add("Gemm", ["mean", weight, bias], "logits", transB=1)
    info = helper.make_tensor_value_info
    ends = [info(name, TensorProto.INT64, ["batch", LENGTH]) for name in ("ids", "mask")]
    graph = helper.make_graph(b.nodes, "t", ends, [info("logits", TensorProto.FLOAT, ["batch", 96])], b.constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return normalise(made)


def tokens(count: int = 24, seed: int = 1):
    rng = np.random.default_rng(seed)
    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (count, 1))).astype(np.int64)
    return {"ids": rng.integers(0, WORDS, (count, LENGTH)), "mask": mask}
