"""Two thin layers in the place of one: the best ones of every rank, by what the layer gives on real inputs.

What is kept is as much as possible of the variance of the layer's outputs; their mean goes into a bias. The best weight
of rank r under an input covariance C is the singular value decomposition of W C^(1/2), cut and un-whitened (Zhang et
al. 2016, arXiv:1505.06798; for language models Wang et al. 2024, arXiv:2403.07378). It is W projected onto the first r
eigenvectors of W C W^T, the covariance of the outputs, so that nothing is inverted and one `[O, O]` matrix is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["channel", "spatial"]
"""`channel`: the kernel to r channels, then 1 x 1; a dense layer is a kernel of one position. `spatial`: the kernel's
columns to r channels, then its rows."""


class Moments:
    """Count, mean and covariance of vectors `[D]` that come in batches `[n, D]`, in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._total = torch.zeros(size, dtype=torch.float64)
        self._square = torch.zeros(size, size, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take these vectors in. Sums are about the first batch's mean: large means cost no digits."""
        if self._origin is None:
            self._origin = rows.mean(0)
        rows = rows - self._origin
        self.count += len(rows)
        self._total += rows.sum(0).double()
        self._square += (rows.T @ rows).double()

    def times(self, scale: Tensor) -> Moments:
        """The moments of these vectors times `scale` `[D]`, number by number."""
        assert self._origin is not None
        made = Moments(len(scale))
        made.count, made._origin = self.count, self._origin.double() * scale
        made._total, made._square = self._total * scale, self._square * torch.outer(scale, scale)
        return made

    @property
    def mean(self) -> Tensor:
        """`[D]`."""
        assert self._origin is not None
        return self._total / self.count + self._origin.double()

    @property
    def covariance(self) -> Tensor:
        """`[D, D]`."""
        mean = self._total / self.count
        return self._square / self.count - torch.outer(mean, mean)


@dataclass(frozen=True)
class Factors:
    """Weights of the two layers, as they stand in them, and the bias of the second; all float32."""

    first: Tensor
    second: Tensor
    bias: Tensor


def shrunk(covariance: Tensor, white: Tensor, count: int) -> Tensor:
    """A covariance of `count` samples, moved towards what white inputs would give.

    By D / (D + count): a few samples say nothing about the directions in which they don't lie.
    """
    share = len(covariance) / (len(covariance) + count)
    scale = covariance.trace() / white.trace().clamp_min(1e-300)
    return (1 - share) * covariance + share * scale * white


class Channel:
    """W `[O, I, k, ...]` as B A, with A `[r, I, k, ...]` and B `[O, r, 1, ...]`, for every r.

    `seen` are moments of the outputs, or with `inputs` of the inputs, for layers that see one position at a time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, seen: Moments, *, inputs: bool = False) -> None:
        self.shape = weight.shape
        self.weight = weight.detach().double().flatten(1)
        self.bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.detach().double()
        if inputs:
            covariance = shrunk(seen.covariance, torch.eye(self.weight.shape[1], dtype=torch.float64), seen.count)
            self.basis, self.variance = _of_inputs(self.weight, covariance)
            self.mean = self.weight @ seen.mean
        else:
            covariance = shrunk(seen.covariance, self.weight @ self.weight.T, seen.count)
            self.basis, self.variance = _leading(covariance)
            self.mean = seen.mean - self.bias
        self.ranks = len(self.variance)
        """Its highest rank."""
        self._total = float(self.variance.sum())
        self._kept: list[float] = self.variance.cumsum(0).tolist()

    def lost(self, rank: int) -> float:
        """Share of the variance of the outputs that goes at this rank."""
        if self._total <= 0 or rank >= len(self._kept):
            return 0.0
        return max(0.0, 1 - self._kept[rank - 1] / self._total)

    def factors(self, rank: int) -> Factors:
        """The two layers."""
        basis = self.basis[:, :rank]
        first, second = _balanced(basis.T @ self.weight, basis, self.variance[:rank].sqrt())
        ones = [1] * (len(self.shape) - 2)
        return Factors(
            first.reshape(rank, *self.shape[1:]).float(),
            second.reshape(len(basis), rank, *ones).float(),
            (self.bias + self.mean - basis @ (basis.T @ self.mean)).float(),
        )


class Spatial:
    """W `[O, I, h, w]` as V `[r, I, h, 1]`, then H `[O, r, 1, w]` (Jaderberg et al. 2014, arXiv:1405.3866).

    V by the decomposition that is best where neighbouring columns of the input are uncorrelated (Tai et al. 2016,
    arXiv:1511.06067, whitened), H by least squares on what V gives. `patches` are moments of what the kernel covers,
    `[I * h * w]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, patches: Moments, most: int) -> None:
        o, i, h, w = weight.shape
        self.shape, self._patches = weight.shape, patches
        dense = weight.detach().double()
        self.bias = torch.zeros(o, dtype=torch.float64) if bias is None else bias.detach().double()
        covariance = shrunk(patches.covariance, torch.eye(i * h * w, dtype=torch.float64), patches.count)
        six = covariance.reshape(i, h, w, i, h, w)
        flat = dense.permute(0, 3, 1, 2).reshape(o * w, i * h)
        columns = torch.stack([six[:, :, q, :, :, q].reshape(i * h, i * h) for q in range(w)]).mean(0)
        basis, _ = _of_inputs(flat, columns)
        self.weight = dense.flatten(1)
        self._vertical = (basis[:, :most].T @ flat).reshape(-1, i, h)
        across = torch.einsum("rip,ipqjut->rqjut", self._vertical, six)
        self.ranks = len(self._vertical)
        """Its highest rank."""
        gram = torch.einsum("rqjut,sju->rqst", across, self._vertical)
        self._gram = gram.reshape(self.ranks * w, self.ranks * w)
        self._cross = (across.reshape(self.ranks * w, -1) @ self.weight.T).T
        self._total = float(torch.einsum("od,de,oe->", self.weight, covariance, self.weight))
        self._solved: dict[int, Tensor] = {}

    def lost(self, rank: int) -> float:
        """Share of the variance of the outputs that goes at this rank."""
        if self._total <= 0:
            return 0.0
        kept = float((self._horizontal(rank) * self._cross[:, : rank * self.shape[3]]).sum())
        return min(1.0, max(0.0, 1 - kept / self._total))

    def factors(self, rank: int) -> Factors:
        """The two layers."""
        o, i, h, w = self.shape
        rows = self._horizontal(rank).reshape(o, rank, w)
        gram = self._gram.reshape(self.ranks, w, self.ranks, w)[:rank, :, :rank]
        deviation = torch.einsum("rqrq->r", gram).clamp_min(0).div(w).sqrt()
        first, second = _balanced(
            self._vertical[:rank].reshape(rank, -1), rows.permute(0, 2, 1).reshape(o * w, rank), deviation
        )
        mean = self._patches.mean
        seen = torch.einsum("rip,ipq->rq", self._vertical[:rank], mean.reshape(i, h, w))
        return Factors(
            first.reshape(rank, i, h, 1).float(),
            second.reshape(o, 1, w, rank).permute(0, 3, 1, 2).contiguous().float(),
            (self.bias + self.weight @ mean - torch.einsum("orq,rq->o", rows, seen)).float(),
        )

    def _horizontal(self, rank: int) -> Tensor:
        """`[O, r * w]` by least squares."""
        if rank not in self._solved:
            size = rank * self.shape[3]
            inverse = torch.linalg.pinv(self._gram[:size, :size], hermitian=True, rtol=1e-10)
            self._solved[rank] = self._cross[:, :size] @ inverse
        return self._solved[rank]


def _leading(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors in the columns, and eigenvalues, largest first."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors.flip(1), values.flip(0).clamp_min(0)


def _of_inputs(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The same of `weight @ covariance @ weight.T`, by way of the smaller of its two sides."""
    if len(weight) <= len(covariance):
        return _leading(weight @ covariance @ weight.T)
    vectors, values = _leading(covariance)
    u, s, _ = torch.linalg.svd(weight @ (vectors * values.sqrt()), full_matrices=False)
    return u, s.square()


def _balanced(first: Tensor, second: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `first` and columns of `second`, scaled so that each channel between them varies as its share weighs.

    A channel of deviation d behind a column of length c gets the root of d c: neither integers for the activations
    nor those for the weights then spend their range on the first few channels alone.
    """
    length = second.norm(dim=0)
    wanted = (deviation * length).sqrt()
    usual = wanted.max().clamp_min(1e-300) * 1e-6
    scale = torch.where(wanted > usual, wanted / deviation.clamp_min(1e-300), torch.ones_like(wanted))
    return first * scale[:, None], second / scale
