"""What a recipe need not say: a batch that fits in memory, and the largest learning rate that still learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.extras import require

LARGEST, SMALLEST = 128, 8
"""Batches that are found lie between these: larger ones learn no faster per sample, smaller ones starve BatchNorm."""
STEPS_AN_EPOCH = 8
"""Few samples get smaller batches, so that an epoch has so many steps."""
SHARE = 0.5
"""So much of the free memory training may take."""
SPARE = 1.5
"""Gradients of activations live beside them: so much more than what the forward pass keeps."""

RANGE_STEPS = 48
"""Steps of a range test."""
RANGE_BATCHES = 8
"""Batches that it goes round, so that each loss has one of the same samples to be compared with."""
RANGE = 1e4
"""The largest rate of a range test over the smallest."""
WORSE = 1.25
"""A smoothed loss so many times above the lowest so far ends the test."""
EVEN = 1.02
"""A smoothed loss this near to the lowest is as low."""
SMOOTH = 0.8
"""Each loss counts 1 - this in the smoothed one."""
SAFETY = 0.25
"""The rate that is taken, of the highest at which the loss was lowest."""


def kept_bytes(module: nn.Module, inputs: Tensor) -> int:
    """Bytes that a forward pass of `module` keeps for the backward pass, without the weights; module stays as it is."""
    weights = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    mode = module.training
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        outputs = module.train()(inputs)  # held, with its graph, so that no storage is freed and counted twice
    del outputs
    module.load_state_dict(state)
    module.train(mode)
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that a training may use now: of the GPU, or of the machine and the container that this runs in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(require("psutil", extra="torch", why="finding a batch size").virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or one without a limit ("max")
        return free
    return min(free, max(limit - used, 0))


def batch_size(module: nn.Module, inputs: Tensor, samples: int, free: int) -> int:
    """The batch for `samples` of them: 128, or less where `free` bytes or the number of samples do not allow it.

    `inputs` are two or more of the samples.

    Raises:
        UsageError: not even the smallest batch fits.
    """
    each = kept_bytes(module, inputs) * SPARE / len(inputs)
    size = LARGEST
    while size > SMALLEST and (size * STEPS_AN_EPOCH > samples or size * each > free * SHARE):
        size //= 2
    if size * each > free:
        raise UsageError(
            f"A batch of {size} samples needs {size * each / 1e6:,.0f} MB to learn from, and {free / 1e6:,.0f} MB are "
            "free. Set batch_size lower, or accumulate higher, and use a machine with more memory."
        )
    return size


def rates(highest: float) -> list[float]:
    """The rates of a range test, from low to high."""
    return [highest / RANGE ** (1 - i / (RANGE_STEPS - 1)) for i in range(RANGE_STEPS)]


def learning_rate(step: Callable[[int, float], float], tried: Sequence[float], batches: int = RANGE_BATCHES) -> float:
    """The peak rate by a range test (Smith 2017, arXiv:1506.01186): a step at every rate, each higher than the last.

    `step` learns from one of the `batches` at a rate and gives the loss before that, or NaN once training broke down.
    At a rate of 0 it says what each batch costs at first: what counts is the loss as a share of that. It falls while
    rates are useful, and rises where they are too high; a quarter of the highest rate at which it was lowest leaves
    room for what a warm-up and momentum make of it over a longer time.
    """
    first = [max(step(batch, 0.0), 1e-30) for batch in range(batches)]
    smooth, seen = 0.0, list[float]()
    for number, rate in enumerate(tried):
        loss = step(number % batches, rate) / first[number % batches]
        if not math.isfinite(loss):
            break
        smooth = SMOOTH * smooth + (1 - SMOOTH) * loss
        seen.append(smooth / (1 - SMOOTH ** (number + 1)))
        if seen[-1] > WORSE * min(seen) and number > RANGE_STEPS // 4:
            break
    best = max((i for i, loss in enumerate(seen) if loss <= EVEN * min(seen)), default=0)
    return tried[best] * SAFETY
