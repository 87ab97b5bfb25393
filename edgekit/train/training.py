"""One training from its start to its end: epochs, the best of them, plans, checkpoints, and the way back."""

from __future__ import annotations

import copy
import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgekit.context import Progress, Silent, Task
from edgekit.errors import DeviceError, EdgekitError, UsageError
from edgekit.prune.shapes import laid_out
from edgekit.train.batch import Batch
from edgekit.train.checkpoint import Checkpoint
from edgekit.train.found import RANGE_BATCHES, RANGE_STEPS, learning_rate, rates
from edgekit.train.objective import Objective, scored
from edgekit.train.processes import Processes
from edgekit.train.regularize import thawed, train_mode, with_dropout
from edgekit.train.samples import Samples
from edgekit.train.schedule import Schedule, steps_within
from edgekit.train.settings import Settings
from edgekit.train.trainee import DivergedError, Optimizers, State, Trainee, sgd, snapshot

TIMED = 5
"""Steps that tell how long one takes, where a time budget plans by it."""
TRIES = 3
"""So often a training that runs away goes back and halves its learning rate."""


@dataclass(frozen=True)
class Recovered:
    """The best epoch's module; `start` is held-out loss and score before training, `curve` one entry an epoch.

    `settings` are those of the training with everything decided, `resumed_at` says where a killed one went on,
    `warnings` are for the top of the report, `frozen` counts numbers that were not to be learned, `found` says in lines
    which settings were chosen here.
    """

    module: nn.Module
    best_epoch: int
    start: tuple[float, float]
    curve: tuple[dict[str, float], ...]
    settings: Settings
    stopped: str = ""
    resumed_at: str = ""
    warnings: tuple[str, ...] = ()
    frozen: int = 0
    found: tuple[str, ...] = ()


class _DeadlineError(Exception):
    """The time lent to this stage is over."""


class Training:
    """One training of a copy of `student`; `run` does it, `objective` says where it stands."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        train: Samples,
        held_out: Samples,
        settings: Settings,
        *,
        progress: Progress | None = None,
        deadline: float | None = None,
        stage: str = "",
        optimizer: Optimizers | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.processes = Processes()
        self.device = self.processes.device(settings.device)
        self.student = laid_out(copy.deepcopy(student), torch.channels_last).to(self.device)
        self.frozen = thawed(self.student)
        wise = laid_out(copy.deepcopy(teacher), torch.channels_last).to(self.device)
        self.train, self.held_out, self.settings, self.asked = train, held_out, settings, settings
        self.progress, self.deadline, self.stage = progress or Silent(), deadline, stage
        self.checkpoint = checkpoint
        self.steps = max(len(train) // settings.batch_size, 1)
        self.objective = Objective(self.student, wise, settings, self.processes)
        self.trainee = Trainee(self.objective, settings, optimizer or sgd, self.processes, self.steps)
        self.good: dict[str, Any] = {}
        self.begun = self.saved = time.monotonic()
        self.evaluation_s = 0.0
        self.warnings: list[str] = []

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.trainee.state

    @property
    def schedule(self) -> Schedule:
        """What is left to do, and at which rates."""
        return self.trainee.schedule

    def run(self, saved: Mapping[str, Any] | None = None) -> Recovered:
        """Train to the end, or until it is of no more use; `saved` is what a checkpoint held."""
        start = self.begin()
        resumed = self.resume(saved) if saved else ""
        self.good = self.content()
        undo = with_dropout(self.student, self.settings.regularize.dropout)
        try:
            with self.processes.sharing_norms(self.student):
                self.find_rate()
                self.plan()
                with self.progress.task(self.stage, total=self.schedule.total) as task:
                    task.advance(self.state.done, note=self.note())
                    stopped = self.epochs(task)
        finally:
            undo()
        self.student.load_state_dict(self.state.best)
        module = laid_out(self.student.to("cpu"), torch.contiguous_format).eval()
        if self.state.halved:
            times = "once" if self.state.halved == 1 else f"{self.state.halved} times"
            self.warnings.append(
                f"{self.stage}: the loss ran away {times}; training went back and on at a learning rate of "
                f"{self.schedule.peak:.3g}. Set {self.stage}.learning_rate to that or lower."
            )
        settings = replace(self.settings, epochs=self.last_epoch)
        return Recovered(
            module, self.state.best_epoch, start, tuple(self.state.curve), settings, stopped, resumed,
            tuple(self.warnings), self.frozen, tuple(self.found()),
        )  # fmt: skip

    def found(self) -> Iterator[str]:
        """Which settings were chosen here, in lines."""
        if not self.asked.learning_rate:
            yield f"learning rate {self.settings.learning_rate:.3g} by a range test of {RANGE_STEPS} steps"
        if self.settings.time_budget_s is not None:
            yield (
                f"{self.schedule.total:,} steps of {self.settings.batch_size} samples fit in "
                f"{self.settings.time_budget_s:g} s ({self.spent():.1f} s were used)"
            )

    @property
    def last_epoch(self) -> int:
        """How many epochs there are to be; the last one may be a part."""
        return -(-self.schedule.total // self.steps)

    def begin(self) -> tuple[float, float]:
        """Where it starts from; what the settings ask for beside the plain loss is made ready."""
        self.objective.check_classes(self.held_out, self.stage)
        started = time.monotonic()
        start = self.objective.evaluate(self.held_out)
        self.evaluation_s = time.monotonic() - started
        if not math.isfinite(start[0]):
            raise UsageError(
                f"{self.stage} cannot begin: the held-out loss is {start[0]}. The network or its teacher gives NaN or "
                "infinity; see what the stages before made of it."
            )
        self.state.best_loss, self.state.best = start[0], snapshot(self.student)
        self.trainee.learn_too(self.objective.prepare(self.train))
        return start

    def epochs(self, task: Task) -> str:
        """One after the other; the answer says why it ended early, if it did."""
        settings, state, shown = self.settings, self.state, self.state.done

        def advance() -> None:
            nonlocal shown
            task.advance(max(self.state.done - shown, 0), note=self.note())
            shown = max(shown, self.state.done)

        while (state := self.state).done < self.schedule.total:
            if settings.time_budget_s is None and state.epoch - state.best_epoch >= settings.patience:
                return f"stopped early: no better for {settings.patience} epochs"
            try:
                self.epoch(advance)
            except _DeadlineError:
                return f"stopped at the deadline in epoch {state.epoch + 1} of {self.last_epoch}"
            except DivergedError as error:
                self.go_back(error)
        return ""

    def go_back(self, error: DivergedError) -> None:
        """To the last good state, at half the learning rate."""
        halved = self.state.halved + 1
        if halved > TRIES:
            raise UsageError(
                f"Recovery training diverged: the loss is {error.loss:.6g} in epoch {self.state.epoch + 1} at learning "
                f"rate {error.rate:.3g}, after going back {TRIES} times to the last good state at half the rate. "
                f"Set {self.stage}.learning_rate lower than {self.settings.learning_rate:g}."
            ) from None
        self.restore(self.good)
        self.state.halved = halved
        self.schedule.peak = self.settings.learning_rate / 2**halved
        self.good = self.content()

    def note(self) -> str:
        """How it went so far, for the line of progress."""
        last = self.state.curve[-1] if self.state.curve else None
        return f"held-out loss {last['held_out_loss']:.3f}, {scored(self.settings, last)}" if last else ""

    def epoch(self, advance: Callable[[], None]) -> None:
        """One pass over the training samples, or what is left of it, its evaluation and its checkpoint."""
        settings, state, started = self.settings, self.state, time.monotonic()
        order, before = self.trainee.seeded(len(self.train)).numpy(), state.seconds
        rate = self.schedule.rate(state.done)
        train_mode(self.student)
        while state.step < self.steps and state.done < self.schedule.total:
            now = self.processes.agree(time.monotonic())
            if self.deadline is not None and now > self.deadline:
                raise _DeadlineError
            rate = self.schedule.rate(state.done)
            rows = order[state.step * settings.batch_size : (state.step + 1) * settings.batch_size]
            state.losses += self.step(rows, rate)
            state.step, state.done = state.step + 1, state.done + 1
            state.seconds = before + time.monotonic() - started
            advance()
            self.replan()
            if now - self.saved >= settings.save_every_s and state.step < self.steps:
                if not self.trainee.finite:  # seen before the next loss tells, which would be too late
                    raise DivergedError(math.nan, rate)
                self.save(now)
        self.finish_epoch(rate, started - before)

    def finish_epoch(self, rate: float, started: float) -> None:
        """Judge it, keep it if it is the best, and write it down."""
        state, trained = self.state, self.state.seconds
        judged = {"": (self.objective.evaluate(self.held_out), snapshot(self.student))}
        if not math.isfinite(judged[""][0][0]):
            raise DivergedError(judged[""][0][0], rate)
        if self.trainee.average:
            self.student.load_state_dict(self.trainee.average.values)
            for module in self.student.modules():
                if callable(constrain := getattr(module, "constrain", None)):
                    constrain()  # an average of what is allowed need not be
            judged["ema_"] = self.objective.evaluate(self.held_out), snapshot(self.student)
            self.student.load_state_dict(judged[""][1])
        state.epoch += 1
        entry = {"epoch": float(state.epoch), "train_loss": state.losses / max(state.step, 1)}
        for prefix, ((loss, score), weights) in judged.items():
            entry |= {f"{prefix}held_out_loss": loss, f"{prefix}{self.settings.score}": score}
            if loss < state.best_loss:
                state.best_loss, state.best_epoch, state.best = loss, state.epoch, weights
        entry |= {
            "seconds": time.monotonic() - started,
            "learning_rate": rate,
            "samples_per_second": state.step * min(self.settings.batch_size, len(self.train)) / max(trained, 1e-9),
        }
        state.curve.append(entry)
        state.step, state.losses, state.seconds = 0, 0.0, 0.0
        self.save(self.processes.agree(time.monotonic()))

    def step(self, rows: npt.NDArray[np.int64], rate: float) -> float:
        """Learn from the samples at `rows`; the answer is their loss."""
        batch = self.batch(rows)
        try:
            return self.trainee.step(batch, rate)
        except DivergedError:
            batch.check_finite(self.train.names(rows))
            raise
        except (MemoryError, RuntimeError, ValueError) as error:
            said, size = str(error), f"batches of {len(rows)} samples in {self.settings.accumulate} parts"
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
                raise DeviceError(
                    f"{self.stage} ran out of memory with {size}. Set {self.stage}.accumulate higher, or batch_size "
                    "lower."
                ) from error
            if "more than 1 value per channel" in said:
                raise UsageError(
                    f"{self.stage}: BatchNorm has a single value a channel to learn from, with {size}. Give more "
                    f"samples, or set {self.stage}.batch_size higher or accumulate lower."
                ) from error
            raise

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The samples at `rows`, augmented and mixed."""
        try:
            inputs, labels = self.train.batch(rows)
        except (EdgekitError, MemoryError):
            raise
        except Exception as error:
            seen = f"in epoch {self.state.epoch + 1} of {self.stage} ({type(error).__name__}: {error})"
            raise UsageError(
                f"{self.train.unreadable(rows)} cannot be read, {seen}. Repair it: the same command with --resume then "
                "goes on from the last checkpoint."
            ) from error
        made = Batch.made(inputs, labels, self.settings, self.trainee.draw)
        return made.to(self.device)

    def find_rate(self) -> None:
        """Where no learning rate is given: the one that a range test finds. Its steps are undone."""
        asked = self.settings
        if asked.learning_rate:
            return
        order = self.trainee.seeded(len(self.train)).numpy()
        # What is drawn at random would hide what the rate does.
        plain = asked.regularize.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
        self.settings = replace(asked, augment="none", regularize=plain)

        def step(batch: int, rate: float) -> float:
            at = batch * self.settings.batch_size
            try:
                return self.step(order[at : at + self.settings.batch_size], rate)
            except DivergedError:
                return math.nan

        train_mode(self.student)
        with self.progress.task(f"{self.stage}: find the learning rate"):
            found = learning_rate(step, rates(asked.highest_rate), min(RANGE_BATCHES, self.steps))
        self.restore(self.good)
        self.settings = replace(asked, learning_rate=found)
        self.schedule.peak = found
        self.good = self.content()

    def plan(self) -> None:
        """Where time is given instead of epochs: how many steps that is, by some that are made and undone."""
        budget = self.settings.time_budget_s
        if budget is None or self.state.done:
            return
        train_mode(self.student)
        order, taken = self.trainee.seeded(len(self.train)).numpy(), []
        for _ in range(TIMED):
            started = time.monotonic()
            self.step(order[: self.settings.batch_size], 0.0)
            taken.append(time.monotonic() - started)
        self.restore(self.good)
        left = budget - self.spent()
        fits = int(self.processes.agree(steps_within(left, min(taken[1:]), self.steps, self.evaluation_s)))
        if not fits:
            raise UsageError(
                f"{self.stage}.time_budget of {budget:g} s is too short: a step takes {min(taken):.2g} s, an "
                f"evaluation {self.evaluation_s:.2g} s, and {max(left, 0):.2g} s are left. Give more time, or set "
                f"{self.stage}.held_out lower."
            )
        self.schedule.replan(0, fits)
        self.good = self.content()

    def replan(self) -> None:
        """Where time is given: now and then, what still fits at the pace of the running epoch."""
        budget, state = self.settings.time_budget_s, self.state
        if budget is None:
            return
        left = self.processes.agree(budget - self.spent())
        often = max(self.schedule.total // 20, 1)
        if left > self.evaluation_s and (state.done % often or state.step < TIMED):
            return
        pace = self.processes.agree(state.seconds / state.step)
        fits = state.done + steps_within(left, pace, self.steps, self.evaluation_s)
        if not self.schedule.total <= fits <= 1.1 * self.schedule.total:
            self.schedule.replan(state.done, fits)

    def spent(self) -> float:
        """Seconds of this training, those before a kill too."""
        return self.state.spent + time.monotonic() - self.begun

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds, and what training goes back to."""
        found = {"batch_size": self.settings.batch_size, "learning_rate": self.settings.learning_rate}
        return {**self.trainee.content(), **found, "spent": self.spent()}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Be as when `content` was taken, but for the time that was spent since."""
        spent = self.spent()
        self.trainee.restore(content)
        self.state.spent = spent - (time.monotonic() - self.begun)

    def save(self, now: float) -> None:
        """Keep the present state, to go back or on from; a full disk is told and does not end the training."""
        self.good, self.saved = self.content(), now
        if self.checkpoint is None or not self.processes.first:
            return
        try:
            self.checkpoint.save(self.good)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            line = (
                f"{self.stage}: no room for the checkpoint {self.checkpoint.path} ({error.strerror}). Training goes "
                "on; after a kill it would start from the last one that was written. Free some space."
            )
            if line not in self.warnings:
                self.warnings.append(line)
                self.progress.say(line)

    def resume(self, saved: Mapping[str, Any]) -> str:
        """Go on from what a checkpoint held; where that was."""
        self.restore(saved)
        self.state.spent += saved["spent"]
        self.settings = replace(self.settings, learning_rate=saved["learning_rate"])
        state = self.state
        return f"step {state.step} of epoch {state.epoch + 1}" if state.step else f"epoch {state.epoch}"
