# ruff: noqa: UP031
"""What tflite-runtime 2.14, the last of its line, cannot run or runs wrongly, read from the .tflite file itself.

It gives NaN on 4-bit weights and, for many models, wrong numbers without a word where weights are 8-bit and
activations float: all of that kind are refused, because the file does not tell which.
This module reads the flatbuffer with the standard library alone, where the bundle is built; its runner refuses on the
device by what was found. Slots are those of the schema of TensorFlow Lite, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSION = "2.14"

_OPERATORS = (
    "0:ADD:5 1:AVERAGE_POOL_2D:3 2:CONCATENATION:4 3:CONV_2D:7 4:DEPTHWISE_CONV_2D:7 5:DEPTH_TO_SPACE:2 "
    "6:DEQUANTIZE:5 7:EMBEDDING_LOOKUP:3 8:FLOOR:1 9:FULLY_CONNECTED:10 10:HASHTABLE_LOOKUP:1 11:L2_NORMALIZATION:2 "
    "12:L2_POOL_2D:1 13:LOCAL_RESPONSE_NORMALIZATION:1 14:LOGISTIC:3 15:LSH_PROJECTION:1 16:LSTM:4 17:MAX_POOL_2D:3 "
    "18:MUL:7 19:RELU:3 20:RELU_N1_TO_1:1 21:RELU6:3 22:RESHAPE:1 23:RESIZE_BILINEAR:4 24:RNN:3 25:SOFTMAX:3 "
    "26:SPACE_TO_DEPTH:2 27:SVDF:4 28:TANH:3 30:SKIP_GRAM:1 33:EMBEDDING_LOOKUP_SPARSE:1 34:PAD:4 "
    "35:UNIDIRECTIONAL_SEQUENCE_RNN:3 36:GATHER:6 37:BATCH_TO_SPACE_ND:4 38:SPACE_TO_BATCH_ND:4 39:TRANSPOSE:6 "
    "40:MEAN:3 41:SUB:5 42:DIV:2 43:SQUEEZE:2 44:UNIDIRECTIONAL_SEQUENCE_LSTM:4 45:STRIDED_SLICE:8 "
    "46:BIDIRECTIONAL_SEQUENCE_RNN:3 47:EXP:2 48:TOPK_V2:3 49:SPLIT:4 50:LOG_SOFTMAX:2 "
    "52:BIDIRECTIONAL_SEQUENCE_LSTM:3 53:CAST:5 54:PRELU:1 55:MAXIMUM:4 56:ARG_MAX:3 57:MINIMUM:4 58:LESS:3 59:NEG:1 "
    "60:PADV2:4 61:GREATER:2 62:GREATER_EQUAL:3 63:LESS_EQUAL:2 64:SELECT:4 65:SLICE:6 66:SIN:1 67:TRANSPOSE_CONV:4 "
    "68:SPARSE_TO_DENSE:3 69:TILE:3 70:EXPAND_DIMS:1 71:EQUAL:4 72:NOT_EQUAL:3 73:LOG:1 74:SUM:2 75:SQRT:1 76:RSQRT:2 "
    "77:SHAPE:1 78:POW:1 79:ARG_MIN:3 80:FAKE_QUANT:2 81:REDUCE_PROD:2 82:REDUCE_MAX:3 83:PACK:4 84:LOGICAL_OR:1 "
    "85:ONE_HOT:1 86:LOGICAL_AND:1 87:LOGICAL_NOT:1 88:UNPACK:4 89:REDUCE_MIN:3 90:FLOOR_DIV:3 91:REDUCE_ANY:1 "
    "92:SQUARE:1 93:ZEROS_LIKE:1 94:FILL:4 95:FLOOR_MOD:2 96:RANGE:2 97:RESIZE_NEAREST_NEIGHBOR:4 98:LEAKY_RELU:2 "
    "99:SQUARED_DIFFERENCE:2 100:MIRROR_PAD:3 101:ABS:5 102:SPLIT_V:2 103:UNIQUE:1 104:CEIL:1 105:REVERSE_V2:3 "
    "106:ADD_N:1 107:GATHER_ND:4 108:COS:1 109:WHERE:2 110:RANK:1 111:ELU:1 112:REVERSE_SEQUENCE:1 113:MATRIX_DIAG:1 "
    "114:QUANTIZE:3 115:MATRIX_SET_DIAG:1 116:ROUND:1 117:HARD_SWISH:1 118:IF:1 119:WHILE:1 "
    "120:NON_MAX_SUPPRESSION_V4:1 121:NON_MAX_SUPPRESSION_V5:1 122:SCATTER_ND:1 123:SELECT_V2:2 124:DENSIFY:1 "
    "125:SEGMENT_SUM:1 126:BATCH_MATMUL:4 128:CUMSUM:1 129:CALL_ONCE:1 130:BROADCAST_TO:3 131:RFFT2D:1 132:CONV_3D:1 "
    "133:IMAG:1 134:REAL:1 135:COMPLEX_ABS:1 136:HASHTABLE:1 137:HASHTABLE_FIND:1 138:HASHTABLE_IMPORT:1 "
    "139:HASHTABLE_SIZE:1 140:REDUCE_ALL:1 141:CONV_3D_TRANSPOSE:1 142:VAR_HANDLE:1 143:READ_VARIABLE:1 "
    "144:ASSIGN_VARIABLE:1 145:BROADCAST_ARGS:1 146:RANDOM_STANDARD_NORMAL:1 147:BUCKETIZE:1 148:RANDOM_UNIFORM:1 "
    "149:MULTINOMIAL:1 150:GELU:2 151:DYNAMIC_UPDATE_SLICE:1 152:RELU_0_TO_1:1 153:UNSORTED_SEGMENT_PROD:1 "
    "154:UNSORTED_SEGMENT_MAX:1 155:UNSORTED_SEGMENT_SUM:1 156:ATAN2:1 157:UNSORTED_SEGMENT_MIN:1 158:SIGN:2 "
    "159:BITCAST:1 160:BITWISE_XOR:1 161:RIGHT_SHIFT:1 "
)
"""`code:name:newest version` of every builtin that tflite-runtime 2.14.0 registers (found by asking it for each)."""

_BUILTINS = {int(code): (name, int(newest)) for code, name, newest in (e.split(":") for e in _OPERATORS.split())}
_FLOAT32, _INT8, _UINT8 = 0, 9, 3
_NEW_TYPES = {
    17: "4-bit integers",
    18: "bfloat16",
    19: "2-bit integers",
    20: "4-bit integers",
    21: "float8",
    22: "float8",
}
_HYBRID = frozenset(
    (
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "TRANSPOSE_CONV",
        "BATCH_MATMUL",
        "CONV_3D",
        "EMBEDDING_LOOKUP",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "LSTM",
        "SVDF",
        "RNN",
        "UNIDIRECTIONAL_SEQUENCE_RNN",
    )
)
"""Operators that take 8-bit weights beside float activations."""


class _Table:
    """A flatbuffer table: fields by slot number."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place
        self.vtable = place - struct.unpack_from("<i", data, place)[0]
        self.size = struct.unpack_from("<H", data, self.vtable)[0]

    def _field(self, slot: int) -> int:
        at = 4 + 2 * slot
        offset = struct.unpack_from("<H", self.data, self.vtable + at)[0] if at < self.size else 0
        return self.place + offset if offset else 0

    def number(self, slot: int, form: str, default: int = 0) -> int:
        place = self._field(slot)
        return int(struct.unpack_from("<" + form, self.data, place)[0]) if place else default

    def _target(self, slot: int) -> int:
        place = self._field(slot)
        return place + struct.unpack_from("<I", self.data, place)[0] if place else 0

    def has(self, slot: int) -> bool:
        return bool(self._target(slot))

    def table(self, slot: int) -> _Table | None:
        place = self._target(slot)
        return _Table(self.data, place) if place else None

    def text(self, slot: int) -> str:
        place = self._target(slot)
        if not place:
            return ""
        length = struct.unpack_from("<I", self.data, place)[0]
        return self.data[place + 4 : place + 4 + length].decode("utf-8", "replace")

    def tables(self, slot: int) -> Iterator[_Table]:
        place = self._target(slot)
        for i in range(struct.unpack_from("<I", self.data, place)[0] if place else 0):
            at = place + 4 + 4 * i
            yield _Table(self.data, at + struct.unpack_from("<I", self.data, at)[0])

    def integers(self, slot: int) -> list[int]:
        place = self._target(slot)
        count = struct.unpack_from("<I", self.data, place)[0] if place else 0
        return list(struct.unpack_from("<%di" % count, self.data, place + 4)) if count else []


def refusal(model: str | Path | bytes) -> str | None:
    """Why tflite-runtime must not run a .tflite file (a path, or its bytes), naming the operator; None if it may."""
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    try:
        if data[4:8] != b"TFL3":
            return "this is no .tflite file"
        root = _Table(data, struct.unpack_from("<I", data, 0)[0])
        return _model(root)
    except (struct.error, IndexError) as error:
        return "this .tflite file is damaged (%s)" % error


def _model(root: _Table) -> str | None:
    codes = [_code(table) for table in root.tables(1)]
    filled = [buffer.has(0) or buffer.number(1, "Q") > 1 for buffer in root.tables(4)]
    for graph in root.tables(2):
        tensors = list(graph.tables(0))
        for operator in graph.tables(3):
            code, version = codes[operator.number(0, "I")]
            reason = _operator(code, version, operator, tensors, filled)
            if reason is not None:
                return reason
    return None


def _code(table: _Table) -> Any:
    return max(table.number(0, "b"), table.number(3, "i")), table.number(2, "i", 1)


def _operator(code: int, version: int, operator: _Table, tensors: Any, filled: Any) -> str | None:
    outputs = operator.integers(2)
    made = tensors[outputs[0]].text(3) if outputs else "?"
    use = "use ai-edge-litert instead"
    if code not in _BUILTINS:
        return "tflite-runtime %s has no operator %d, which makes %r: %s" % (VERSION, code, made, use)
    name, newest = _BUILTINS[code]
    if version > newest:
        seen = "%s version %d, which makes %r" % (name, version, made)
        return "tflite-runtime %s knows %s up to version %d, not %s: %s" % (VERSION, name, newest, seen, use)
    inputs = [index for index in operator.integers(1) if index >= 0]
    for index in inputs + outputs:
        kind = tensors[index].number(1, "b")
        if kind in _NEW_TYPES:
            return "tflite-runtime %s computes the %s that makes %r wrongly, with its %s: %s" % (
                VERSION, name, made, _NEW_TYPES[kind], use)  # fmt: skip
        quantization = tensors[index].table(4)
        if quantization is not None and quantization.number(4, "B") == 2:
            return "tflite-runtime %s computes the %s that makes %r wrongly, with its blockwise scales: %s" % (
                VERSION, name, made, use)  # fmt: skip
    if name in _HYBRID and _is_hybrid(inputs, outputs, tensors, filled):
        return (
            "tflite-runtime %s gives wrong numbers for 8-bit weights with float activations (dynamic int8), as in the "
            "%s that makes %r: use ai-edge-litert instead, or float or static int8" % (VERSION, name, made)
        )
    return None


def _is_hybrid(inputs: Any, outputs: Any, tensors: Any, filled: Any) -> bool:
    kinds = [tensors[index].number(1, "b") for index in inputs]
    constant = [filled[tensors[index].number(2, "I")] for index in inputs]
    integer = any(kinds[i] in (_INT8, _UINT8) and constant[i] for i in range(len(inputs)))
    return integer and any(tensors[index].number(1, "b") == _FLOAT32 for index in outputs)
