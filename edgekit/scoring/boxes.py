"""Detection: COCO's mean average precision (Lin et al. 2014, arXiv:1405.0312), by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.scoring import Array, Asked, Scored

MOST = 100
"""Detections of one class that count in one image, best first: COCO's own limit."""


def score(asked: Asked) -> Scored:
    """Detections matched to labels `[N, boxes, 5]` (class, xmin, ymin, xmax, ymax; class -1 is none).

    The model gives one array `[N, K, 6]` (xmin, ymin, xmax, ymax, score, class); or boxes `[N, K, 4]`, scores `[N, K]`
    and classes `[N, K]`; or boxes and scores `[N, K, classes]`. Scores of 0 and below are no detections. Nothing is
    suppressed here: that is for the network, or for `decode`. A box turned inside out is a wrong one.
    """
    assert asked.truth is not None
    coco = require("pycocotools.coco", extra="metrics", why="mean average precision")
    judge = require("pycocotools.cocoeval", extra="metrics", why="mean average precision")
    wanted = [(row, box) for row, boxes in enumerate(asked.truth) for box in boxes if box[0] >= 0]
    if not wanted:
        raise UsageError("Task 'detection': no sample has a box, so there is no precision to average.")
    with contextlib.redirect_stdout(io.StringIO()):
        seen = judge.COCOeval(_coco(coco, wanted, None, len(asked.truth)), _found(coco, asked), "bbox")
        seen.params.areaRng, seen.params.areaRngLbl = [[0, 1e10]], ["all"]
        seen.params.maxDets = [MOST]
        seen.evaluate()
        seen.accumulate()
    precision = seen.eval["precision"]  # [thresholds, recalls, classes, 1, 1], -1 where a class has no label
    values = {"map": _mean(precision), "map50": _mean(precision[:1])}
    rows = [(row, int(box[0])) for row, box in wanted]
    return Scored({"found": _matched(seen), "wanted": np.array(rows, np.float32)}, values)


def _mean(precision: Array) -> float:
    return float(precision[precision > -1].mean())


def _coco(coco: Any, boxes: Any, scores: Any, images: int, classes: Any = ()) -> Any:
    """COCO's own form of boxes `(sample, (class, xmin, ymin, xmax, ymax))`; numbers start at 1, since 0 is no match."""
    entries = []
    for number, (row, (kind, left, top, right, bottom)) in enumerate(boxes, 1):
        wide, high = float(right - left), float(bottom - top)
        entry = {
            "id": number, "image_id": row, "category_id": int(kind), "iscrowd": 0,
            "bbox": [float(left), float(top), wide, high], "area": max(wide * high, 0.0),
        }  # fmt: skip
        entries.append(entry if scores is None else entry | {"score": float(scores[number - 1])})
    kinds = sorted({entry["category_id"] for entry in entries} | set(classes))
    made = coco.COCO()
    made.dataset = {
        "images": [{"id": row} for row in range(images)],
        "categories": [{"id": kind} for kind in kinds],
        "annotations": entries,
    }
    made.createIndex()
    return made


def _found(coco: Any, asked: Asked) -> Any:
    boxes, scores, classes = _three(asked)
    flat = [
        (row, (classes[row, k], *boxes[row, k])) for row in range(len(boxes)) for k in np.flatnonzero(scores[row] > 0)
    ]
    return _coco(coco, flat, scores[scores > 0], len(boxes))


def _three(asked: Asked) -> tuple[Array, Array, Array]:
    """Boxes `[N, K, 4]`, scores `[N, K]` and classes `[N, K]` of what the model gives."""
    outputs = [np.asarray(output, np.float64) for output in asked.outputs]
    if len(outputs) == 1 and outputs[0].ndim == 3 and outputs[0].shape[2] == 6:
        return outputs[0][..., :4], outputs[0][..., 4], outputs[0][..., 5]
    first = outputs[0].shape[:2]
    if len(outputs) in (2, 3) and outputs[0].ndim == 3 and outputs[0].shape[2] == 4:
        if len(outputs) == 3 and outputs[1].shape == outputs[2].shape == first:
            return outputs[0], outputs[1], outputs[2]
        if len(outputs) == 2 and outputs[1].ndim == 3 and outputs[1].shape[:2] == first:
            return _each_class(*outputs)
    raise UsageError(
        "Task 'detection' needs one output [N, K, 6] (xmin, ymin, xmax, ymax, score, class), or boxes [N, K, 4] with "
        f"scores [N, K] and classes [N, K] or with scores [N, K, classes]; the model gives "
        f"{', '.join(str(list(output.shape)) for output in outputs)}. Bring them there with `decode: file.py:function`."
    )


def _each_class(boxes: Array, scores: Array) -> tuple[Array, Array, Array]:
    n, k, classes = scores.shape
    kinds = np.broadcast_to(np.arange(classes, dtype=np.float64), scores.shape)
    return np.repeat(boxes, classes, axis=1), scores.reshape(n, k * classes), kinds.reshape(n, k * classes)


def _matched(seen: Any) -> Array:
    """A row a detection of a class with labels: sample, class, score, and a match at each threshold."""
    rows = [
        np.column_stack([
            np.full(len(image["dtScores"]), image["image_id"]), np.full(len(image["dtScores"]), image["category_id"]),
            image["dtScores"], (image["dtMatches"] > 0).T,
        ])
        for image in seen.evalImgs
        if image is not None and len(image["dtScores"])
    ]  # fmt: skip
    width = 3 + len(seen.params.iouThrs)
    return (np.concatenate(rows) if rows else np.empty((0, width))).astype(np.float32)
