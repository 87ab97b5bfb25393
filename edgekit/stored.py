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
            UsageError: it is missing, is not a report, or does not say which one bundle ships for a target and backend.
        """
        file = path / "report.json" if path.is_dir() else path
        report = read_report(file)
        _check_ships(file, report)
        return cls(file, report, hashlib.sha256(file.read_bytes()).hexdigest())

    def file(self, written: str) -> Path:
        """A file that the report names.

        Raises:
            UsageError: it would lie outside of the report's folder, or is the name of no file.
        """
        folder = self.path.parent.resolve()
        if "\0" in written:
            raise UsageError(f"{self.path}: {written!r} is the name of no file. Run the recipe again.")
        file = (folder / written).resolve()
        if not file.is_relative_to(folder):
            raise UsageError(f"{self.path}: {written!r} lies outside of the report's folder. Run the recipe again.")
        return file

    def predictions(self, written: str) -> Predictions:
        """Predictions by their path in the report.

        Raises:
            AbsentError: the file did not come along, or is damaged.
        """
        file = self.file(written)
        if not file.exists():
            raise AbsentError(f"the predictions file {written} does not lie beside the report")
        try:
            return read_predictions(file)
        except UsageError as error:
            raise AbsentError(str(error), damaged=True) from error

    def samples(self, written: str) -> npt.NDArray[np.float64] | None:
        """Latencies of single inferences `[n]` by their path in the report, None where the file did not come along.

        Raises:
            AbsentError: it is damaged, or holds what is no time.
        """
        file = self.file(written)
        if not file.exists():
            return None
        try:
            taken = read_samples(file)
        except UsageError as error:
            raise AbsentError(str(error), damaged=True) from error
        if taken.ndim != 1:
            raise AbsentError(f"{file}: {list(taken.shape)} values are no list of times", damaged=True)
        return taken

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


def _check_ships(file: Path, report: Report) -> None:
    """A gate judges the bundle that ships: one that is none, or a second one, would go unseen."""
    places: set[tuple[str, str]] = set()
    for result in (r for r in report.results if r.ships):
        place = result.target, result.backend
        why = "two bundles ship" if place in places else "what ships was not built" if result.status == "failed" else ""
        if why:
            raise UsageError(f"{file}: {why} for {result.target} with {result.backend}. Run the recipe again.")
        places.add(place)
