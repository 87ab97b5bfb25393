"""Policies: how much an environment of gymnasium (Towers et al. 2024, arXiv:2407.17032) pays for what a bundle does.

Every episode starts from a seed of its own, the same for all bundles, so that returns are compared pair by pair. The
bundle is loaded by the agent's runner in a fresh process on this machine, which steps the environments side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.agent.failures import Failure
from edgekit.data import Environment
from edgekit.errors import DeviceError, EdgekitError, UsageError
from edgekit.extras import require
from edgekit.usercode import function_of

Floats = npt.NDArray[np.float64]
Act = Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]
"""Observations `[n, ...]` to the network's outputs."""

MOST_STEPS = 10_000
"""Steps after which an episode ends that its environment does not end itself."""


def episode_returns(bundle: Path, environment: Environment, *, exact: bool = False) -> Floats:
    """The return of each episode, `[episodes]`, in a fresh process. `exact`: as `run --exact` of the bundle computes.

    Raises:
        UsageError: what the network gives is no action of the environment, or is not finite.
        DeviceError: the process broke.
    """
    asked = {"bundle": str(bundle), "exact": exact, **vars(environment)}
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-m", "edgekit.episodes"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=os.environ,
    )
    if done.returncode:
        told = done.stderr.strip()
        if done.returncode == 2:
            raise UsageError(f"{bundle.name}: {told}")
        raise DeviceError(f"{bundle.name}: the episodes of {environment.name} broke: {told[-300:]}")
    return np.asarray(json.loads(done.stdout.splitlines()[-1])["returns"], np.float64)


def play(environment: Environment, act: Act) -> Floats:
    """The return of each episode: the sum of its rewards, not discounted."""
    gym = require("gymnasium", extra="metrics", why="the return of episodes")
    decode = function_of(*_place(environment.decode)) if environment.decode else None
    worlds = [gym.make(environment.name) for _ in range(environment.episodes)]
    space = worlds[0].action_space
    seen = [world.reset(seed=environment.seed + number)[0] for number, world in enumerate(worlds)]
    returns, alive = np.zeros(len(worlds)), list(range(len(worlds)))
    for _ in range(MOST_STEPS):
        outputs = act(np.stack([np.asarray(seen[row]) for row in alive]))
        if any(not np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
            raise UsageError("the network gives NaN or infinity in an episode")
        actions = decode(outputs) if decode else actions_of(outputs, space)
        going = []
        for row, action in zip(alive, actions, strict=True):
            if not space.contains(action):
                raise UsageError(f"{action!r} is no action of {environment.name}: {space}. Make one by `decode`")
            seen[row], reward, terminated, truncated, _ = worlds[row].step(action)
            returns[row] += float(reward)
            going += [] if terminated or truncated else [row]
        alive = going
        if not alive:
            break
    for world in worlds:
        world.close()
    return returns


def actions_of(outputs: Sequence[npt.NDArray[Any]], space: Any) -> list[Any]:
    """The highest score of a discrete space, values cut to the bounds of a box.

    Raises:
        UsageError: the output does not fit the space.
    """
    output = np.asarray(outputs[0])
    kind = type(space).__name__
    if kind == "Discrete" and len(outputs) == 1 and output.size == len(output) * int(space.n):
        return [np.int64(space.start + best) for best in output.reshape(len(output), -1).argmax(axis=1)]
    if kind == "Box" and len(outputs) == 1 and output.size == len(output) * int(np.prod(space.shape)):
        shaped = output.reshape(len(output), *space.shape)
        return [np.clip(row, space.low, space.high).astype(space.dtype) for row in shaped]
    shapes = ", ".join(str(list(np.shape(given)[1:])) for given in outputs)
    raise UsageError(f"a network that gives {shapes} does not act in {space}. Make actions by `decode`")


def _place(source: str) -> tuple[Path, str]:
    file, _, function = source.rpartition(":")
    return Path(file), function


def _acting(bundle: str, exact: bool) -> Act:
    """What the bundle's compiled model answers, by the agent's own runner."""
    from edgekit.agent.infer import Samples, batch_size, in_float, make_runner, outputs_of
    from edgekit.agent.unpack import Archive

    archive = Archive(bundle)
    runners: dict[int, Any] = {}

    def act(observations: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        samples = Samples([observations], archive.manifest)
        size = batch_size(archive.manifest, samples.count)
        if not runners:
            manifest = in_float(archive.manifest) if exact else archive.manifest
            runners[0] = make_runner(archive.unpack(), manifest, 1, size)
        chunks = list(outputs_of(runners[0], samples, size))
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    return act


def main() -> int:
    """Play what stdin asks for; the returns go to stdout, a message to stderr."""
    asked = json.load(sys.stdin)
    act = _acting(asked.pop("bundle"), asked.pop("exact"))
    try:
        print(json.dumps({"returns": play(Environment(**asked), act).tolist()}))
    except (EdgekitError, Failure) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
