"""Embeddings: is the nearest other sample of the same class, and how near is each to the reference's."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.scoring import Array, Asked, Scored, one_output

QUERIES = 2000
"""So many samples, evenly spread, ask for their neighbours; all samples can be found."""
BLOCK = 256


def score(asked: Asked) -> Scored:
    """Cosine to the reference and, where there are labels `[N]`, recall and average precision of each query."""
    found = _unit(one_output(asked, "embedding", "[N, D]"))
    evidence = {"cosine": np.einsum("nd,nd->n", found, _unit(np.asarray(asked.reference[0])))}
    if asked.truth is not None:
        evidence |= _retrieval(found, asked.truth)
    return Scored(evidence, {})


def _unit(values: Array) -> Array:
    flat = values.reshape(len(values), -1) if all(extent == 1 for extent in values.shape[2:]) else values
    if flat.ndim != 2 or flat.shape[1] < 2:
        raise UsageError(
            f"Task 'embedding' needs an output [N, D], the model gives {list(values.shape)}. Pool it with "
            "`decode: file.py:function`."
        )
    wide = flat.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(wide / lengths)


def _retrieval(found: Array, truth: Array) -> dict[str, Array]:
    """Each query against all other samples by cosine, the earlier first on ties; a class of one sample asks nothing."""
    n, counts = len(found), dict(zip(*np.unique(truth, return_counts=True), strict=True))
    asks = np.array([counts[label] > 1 for label in truth])
    if not asks.any():
        raise UsageError("Task 'embedding': no two samples share a label, so none can be retrieved.")
    queries = np.flatnonzero(asks)
    if len(queries) > QUERIES:
        queries = queries[np.linspace(0, len(queries) - 1, QUERIES).astype(np.int64)]
    kept = {name: np.full(n, np.nan) for name in ("recall_at_1", "recall_at_5", "retrieval_map")}
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        near = found[rows] @ found.T
        near[np.arange(len(rows)), rows] = -np.inf  # itself comes last, and is cut off
        ranked = np.argsort(-near, axis=1, kind="stable")[:, :-1]
        right = truth[ranked] == truth[rows, None]
        ranks = np.arange(1, n)
        precision = np.cumsum(right, axis=1) / ranks
        kept["recall_at_1"][rows] = right[:, 0]
        kept["recall_at_5"][rows] = right[:, :5].any(axis=1)
        kept["retrieval_map"][rows] = (precision * right).sum(axis=1) / right.sum(axis=1)
    return kept
