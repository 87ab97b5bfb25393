"""Which changed forms of the evaluation samples a recipe asks for, held against its data and its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.assess import Oracle, scores
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.profile import fed
from edgekit.report.robust import Kind
from edgekit.robust.adversarial import Attack
from edgekit.robust.corruptions import Corruptor, form_of
from edgekit.robust.settings import RobustnessSettings
from edgekit.workspace import digest

if TYPE_CHECKING:
    from edgekit.context import Task
    from edgekit.data import Split

CHUNK = 64
_PACKAGES = ("numpy", "pillow", "torch", "adversarial-robustness-toolbox")


@dataclass(frozen=True)
class Changed:
    """One changed form of the samples: a corruption at a severity, or (severity 0) an attack."""

    kind: Kind
    what: str
    severity: int = 0

    @property
    def name(self) -> str:
        """As the report and clauses call it."""
        return f"adversarial.{self.what}" if self.kind == "adversarial" else f"{self.what}.{self.severity}"


@dataclass(frozen=True)
class Conditions:
    """The changed forms of one run's samples."""

    settings: RobustnessSettings
    seed: int
    oracle: Oracle

    def check(self) -> None:
        """Refuse what cannot be measured, before anything long starts.

        Raises:
            UsageError: no labels, or samples or a network that are not of the kind needed.
            MissingDependencyError: a package that the recipe's choice needs is missing.
        """
        if not self.oracle.classification or self.oracle.split.labels is None:
            raise UsageError("needs a classifier and labelled samples to evaluate on. Leave `robustness` out.")
        if {c.what for c in self.changed} & {"blur", "jpeg"}:
            require("PIL.Image", extra="robustness", why="blur and JPEG of images")
        if self.settings.adversarial is not None:
            self.attack.check()

    @cached_property
    def samples(self) -> Split:
        """Evenly spread over the evaluation split: it may be sorted by class."""
        split = self.oracle.split
        rows = np.linspace(0, len(split) - 1, min(self.settings.samples, len(split))).round().astype(np.int64)
        return split.take(rows)

    @cached_property
    def place(self) -> int:
        """Which of the network's inputs is changed: the one that takes floats."""
        floats = [i for i, spec in enumerate(self.oracle.model.inputs) if np.dtype(spec.dtype).kind == "f"]
        if len(floats) != 1:
            raise UsageError(
                f"needs a network with one input of floats, this one has {len(floats)}. Leave `robustness` out."
            )
        return floats[0]

    @property
    def stored(self) -> Any:
        """The samples of that input as stored."""
        return self.samples.stored(self.oracle.model.inputs)[self.place]

    @cached_property
    def corruptor(self) -> Corruptor:
        """For the samples of this run."""
        form = form_of(self.stored, self.samples.preprocess.layout, self.settings.modality)
        return Corruptor.of(self.stored, form, self.seed)

    @cached_property
    def attack(self) -> Attack:
        """On the reference."""
        assert self.settings.adversarial is not None
        stored = self.stored
        low, high = (0.0, 255.0) if stored.dtype == np.uint8 else (float(stored.min()), float(stored.max()))
        how = self.samples.preprocess
        return Attack(self.oracle.model, self.settings.adversarial, how, low, high, self.oracle.probabilities)

    @cached_property
    def changed(self) -> tuple[Changed, ...]:
        """All forms that are asked for.

        Raises:
            UsageError: a corruption is not one of these samples' kind.
        """
        found: list[Changed] = []
        asked = self.settings.corruptions
        if asked:
            names = self.corruptor.form.names
            if asked != "all" and (strange := [name for name in asked if name not in names]):
                raise UsageError(
                    f"{strange[0]!r} is no corruption of this data ({self.corruptor.form.modality}). "
                    f"There are: {', '.join(names)}."
                )
            chosen = names if asked == "all" else asked
            found = [
                Changed("corruption", name, level) for name in chosen for level in sorted(self.settings.severities)
            ]
        if self.settings.adversarial is not None:
            found.append(Changed("adversarial", self.settings.adversarial.attack))
        return tuple(found)

    def key(self, changed: Changed) -> str:
        """A hash over what makes the samples of this form: data, settings, seed, versions, the network attacked."""
        attack = self.settings.adversarial if changed.kind == "adversarial" else None
        about: list[str | bytes] = []
        if attack is not None:
            from edgekit.graph.large import fingerprint

            about = [fingerprint(self.oracle.model.proto), attack.model_dump_json()]
        samples = self.samples
        general = (changed.name, self.settings.modality, str(self.seed), self.oracle.data.sha256, samples.name)
        return digest(*general, *samples.ids, *map(_version, _PACKAGES), *about)

    def make(self, changed: Changed, task: Task) -> list[Any]:
        """The samples in this form, as the agent is fed: one array an input; `task` advances by samples."""
        specs = self.oracle.model.inputs
        if changed.kind == "adversarial":
            return [np.concatenate(list(self._attacked(task)))]
        split = self._corrupted(changed, task)
        return fed(split, specs, lambda: split.ready(specs))

    def _corrupted(self, changed: Changed, task: Task) -> Split:
        split, stored, parts = self.samples, self.stored, []
        for start in range(0, len(split), CHUNK):
            ids = split.ids[start : start + CHUNK]
            rows = stored[start : start + CHUNK]
            parts.append(self.corruptor.apply(rows, ids, changed.what, changed.severity))
            task.advance(len(ids))
        made = np.concatenate(parts)
        if not isinstance(split.inputs, Mapping):
            return replace(split, inputs=made)
        name = self.oracle.model.inputs[self.place].name if len(split.inputs) > 1 else next(iter(split.inputs))
        return replace(split, inputs={**split.inputs, name: made})

    def _attacked(self, task: Task) -> Iterator[Any]:
        split, specs, size = self.samples, self.oracle.model.inputs, self.attack.batch
        assert split.labels is not None
        shape = split.ready(specs, slice(0, 1))[0].shape[1:]
        make = self.attack.maker(shape, scores(self.oracle.outputs).shape[1])
        for start in range(0, len(split), size):
            rows = slice(start, start + size)
            yield make(split.ready(specs, rows)[0], split.labels[rows])
            task.advance(len(split.ids[rows]))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
