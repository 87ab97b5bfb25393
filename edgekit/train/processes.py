"""One training over one process, or over several that `torchrun` started.

Every process reads the same global batch and computes a part of it; losses, gradients and statistics of BatchNorm are
brought together, so that each optimizer step is that of one process up to the order of sums. Decisions that depend on
the clock are those of the first process, which alone writes. Hugging Face accelerate sets the processes up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.launched import processes

PATIENCE = timedelta(hours=24)
"""So long a process waits for the others: the first one may prune and quantize meanwhile."""


class Processes:
    """All of them, as one sees them: `count`, and `rank`, its own number."""

    def __init__(self) -> None:
        self.count, self.rank = 1, 0
        self._accelerator: Any = None
        if processes() > 1:
            accelerate = require("accelerate", extra="torch", why="training over several processes")
            group = accelerate.InitProcessGroupKwargs(timeout=PATIENCE)
            # Gloo also adds up what lies on GPUs, and both kinds of tensors are added up here.
            self._accelerator = accelerate.Accelerator(cpu=True, kwargs_handlers=[group])
            self.count, self.rank = self._accelerator.num_processes, self._accelerator.process_index

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """Where this process trains: the processor, or a GPU of its own as far as there are enough.

        Raises:
            UsageError: torch sees no GPU.
        """
        if kind == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UsageError("`device: cuda` needs a GPU, and torch sees none. Use `device: cpu`.")
        return torch.device("cuda", self.rank % torch.cuda.device_count())

    def part(self, count: int) -> slice:
        """Which of `count` samples of a batch are this process's.

        Raises:
            UsageError: there are fewer samples than processes.
        """
        if count < self.count:
            raise UsageError(f"A batch of {count} samples cannot be shared by {self.count} processes. Start fewer.")
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def agree(self, value: float) -> float:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        told = torch.tensor([value if self.first else 0.0], dtype=torch.float64, device=self._accelerator.device)
        return float(self._accelerator.reduce(told, reduction="sum"))

    def total(self, values: Iterable[float]) -> list[float]:
        """Sums over all processes."""
        if self.count == 1:
            return list(values)
        told = torch.tensor(list(values), dtype=torch.float64, device=self._accelerator.device)
        return [float(value) for value in self._accelerator.reduce(told, reduction="sum")]

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by the sum over all processes, which must have the same ones."""
        if self.count == 1:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self._accelerator.reduce(torch.cat([grad.reshape(-1) for grad in grads]), reduction="sum")
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.reshape(grad.shape))

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def sharing_norms(self, module: nn.Module) -> Iterator[None]:
        """While the context is open BatchNorm takes its statistics over the parts of all processes.

        Torch's own SyncBatchNorm does so on GPUs alone.
        """
        changed = []
        if self.count > 1:
            for layer in module.modules():
                if type(layer) in _SHARED:
                    changed.append((layer, type(layer)))
                    layer.__class__ = _SHARED[type(layer)]
        try:
            yield
        finally:
            for layer, kind in changed:
                layer.__class__ = kind


class _Sum(torch.autograd.Function):
    """The sum over all processes; every one of them has a share in its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone()
        torch.distributed.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        result = grads[0].clone()
        torch.distributed.all_reduce(result)
        return result


def _summed(value: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return result


class _Shared(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        """`input` `[N, C, ...]` normalised by the mean and variance over all processes."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        wide = input.float()
        axes = [0, *range(2, input.ndim)]
        count = input.new_full((1,), wide.numel() / wide.shape[1], dtype=torch.float32)
        sums = torch.cat([wide.sum(axes), count])
        sums = _summed(sums)
        total = sums[-1]
        mean = sums[:-1] / total
        shape = [1, -1, *[1] * (input.ndim - 2)]
        centred = wide - mean.reshape(shape)
        variance = _summed(centred.square().sum(axes)) / total
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * total / (total - 1).clamp(min=1), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        result = centred * scale.reshape(shape)
        return (result if self.bias is None else result + self.bias.reshape(shape)).to(input.dtype)


_SHARED: dict[type, type] = {
    kind: type(f"Shared{kind.__name__}", (_Shared, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}
