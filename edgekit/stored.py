"""A report as it lies on the disk, with the files that it names beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle import open_bundle, unlike
from edgekit.errors import IntegrityError, UsageError
from edgekit.report.predictions import Predictions, read_predictions, read_samples
from edgekit.report.report import Report, Result, read_report
from edgekit.report.verdicts import Judged
from edgekit.rivals import AbsentError


@dataclass(frozen=True)
class Stored:
    """A report as it lies on the disk. Paths in it lead to files beside it, or nowhere."""

    path: Path
    report: Report
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Stored:
        """`path` is a `report.json`, or the folder that holds it.

        Raises:
            UsageError: it is missing, or is not a report.
        """
        file = path / "report.json" if path.is_dir() else path
        report = read_report(file)
        return cls(file, report, hashlib.sha256(file.read_bytes()).hexdigest())

    def file(self, written: str) -> Path:
        """A file that the report names.

        Raises:
            UsageError: it would lie outside of the report's folder.
        """
        folder = self.path.parent.resolve()
        file = (folder / written).resolve()
        if not file.is_relative_to(folder):
            raise UsageError(f"{self.path}: {written!r} lies outside of the report's folder. Run the recipe again.")
        return file

    def predictions(self, written: str) -> Predictions:
        """Predictions by their path in the report."""
        return read_predictions(self.file(written))

    def samples(self, written: str) -> npt.NDArray[np.float64] | None:
        """Latencies by their path in the report, None where the file did not come along."""
        file = self.file(written)
        return read_samples(file) if file.exists() else None

    def bundle(self, result: Result) -> Path:
        """The bundle of a result, verified: the very one that was measured.

        Raises:
            AbsentError: it did not come along with the report.
            IntegrityError: it is damaged, or another one.
        """
        if result.bundle is None or not (path := self.file(result.bundle)).exists():
            raise AbsentError(f"the bundle of {result.key} does not lie beside the report ({result.bundle})")
        if reason := unlike(open_bundle(path), result.bundle_sha256):
            raise IntegrityError(f"{path}: {reason}")
        return path

    def named(self) -> Judged:
        """What `gate.json` says of it."""
        report = self.report
        return Judged(path=str(self.path), sha256=self.sha256, created=report.created, model=report.source.name)
