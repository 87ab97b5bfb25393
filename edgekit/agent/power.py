"""Energy of one inference, where the device has a meter: null with the reason elsewhere.

By the windows of MLPerf Tiny's energy mode (at least 10 s and 10 inferences each, the median of five of them counts),
gross, and net of what the idle device takes.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

from . import boards
from .system import System, UnknownError

LEAST_INFERENCES = 10
ZONES = "sys/class/powercap/intel-rapl:*/name"


class Rapl:
    """Counters of energy of x86 packages and of their memory (Linux, powercap): exact sums over any window."""

    name, estimate, interval = "RAPL", False, 0.0

    def __init__(self, system: System) -> None:
        self.system = system
        names = {path[: -len("/name")]: system.text(path) for path in system.find(ZONES)}
        self.zones = [path for path, name in names.items() if re.fullmatch(r"package-\d+|dram", name)]
        if not self.zones:
            raise UnknownError("no package under /sys/class/powercap")
        self.rails = sorted(names[zone] for zone in self.zones)
        self.ranges = [self._of(zone, "max_energy_range_uj") for zone in self.zones]
        self.look()

    def _of(self, zone: str, file: str) -> int:
        return int(self.system.number(f"{zone}/{file}"))

    def look(self) -> list[int]:
        """The counters now, in microjoules."""
        return [self._of(zone, "energy_uj") for zone in self.zones]

    def joules(self, start: list[int], end: list[int]) -> float:
        """Energy between two looks. A counter that is smaller than before began again at 0 after its range."""
        grown = [b - a if b >= a else b - a + most for a, b, most in zip(start, end, self.ranges)]
        return sum(grown) * 1e-6


class Rails:
    """Power of a board's rails, in watts, sampled while it works."""

    def __init__(self, name: str, read: Callable[[], dict[str, float]], *, estimate: bool, interval: float) -> None:
        self.name, self.estimate, self.interval = name, estimate, interval
        self.rails = sorted(read())
        self.read = read

    def watts(self) -> float:
        """All of it now."""
        return sum(self.read().values())


def meter(system: System) -> Any:
    """The meter of this device; an UnknownError that says of each kind why it is not there."""
    reasons = []
    for name, make in (("INA3221", ina3221), ("PMIC", pmic), ("RAPL", Rapl)):
        try:
            return make(system)
        except UnknownError as error:
            reasons.append(f"{name}: {error}")
    raise UnknownError("no meter of energy (" + "; ".join(reasons) + ")")


def ina3221(system: System) -> Rails:
    """The rail of a Jetson's whole module: VDD_IN, or on an AGX Orin the three that make up the module's power."""

    def read() -> dict[str, float]:
        found = boards.rails(system)
        for names in (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")):
            if all(name in found for name in names):
                return {name: found[name] for name in names}
        raise UnknownError(f"no rail of the whole module among {', '.join(sorted(found))}")

    return Rails("INA3221", read, estimate=False, interval=0.1)


def pmic(system: System) -> Rails:
    """The rails of a Raspberry Pi 5 whose current its power chip measures, by `vcgencmd pmic_read_adc`."""
    kind = boards.board(system)["kind"]
    if kind != "raspberry-pi-5":
        raise UnknownError("only a Raspberry Pi 5 senses currents")

    def read() -> dict[str, float]:
        said = system.run(["vcgencmd", "pmic_read_adc"])
        seen = {
            (rail, what): float(value) for rail, what, value in re.findall(r"(\S+)_([AV]) \w+\(\d+\)=([\d.]+)", said)
        }
        found = {rail: seen[rail, "A"] * seen[rail, "V"] for rail, what in seen if what == "A" and (rail, "V") in seen}
        if not found:
            raise UnknownError(f"vcgencmd pmic_read_adc said {said.strip()[:60]!r}")
        return found

    return Rails("PMIC", read, estimate=True, interval=0.5)


def integral(samples: list[tuple[float, float]], start: float, end: float) -> float:
    """Joules from `start` to `end` of `(time in s, power in W)` samples: their mean power, by trapezoids."""
    inside = [(at, watts) for at, watts in samples if start <= at <= end]
    if len(inside) < 2:
        raise UnknownError(f"the meter gave {len(inside)} samples in a window of {end - start:.2f} s")
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(inside[:-1], inside[1:]))  # noqa: RUF007
    return area / (inside[-1][0] - inside[0][0]) * (end - start)


def summary(windows: list[tuple[float, float, int]], idle_w: float) -> dict[str, Any]:
    """Medians over windows `(joules, seconds, inferences)`, in joules an inference."""
    gross = [joules / count for joules, _, count in windows]
    net = [(joules - idle_w * seconds) / count for joules, seconds, count in windows]
    return {
        "gross_j": statistics.median(gross),
        "net_j": statistics.median(net),
        "idle_w": idle_w,
        "windows": [{"joules": j, "seconds": s, "inferences": n} for j, s, n in windows],
    }


def energy(archive: Any, options: Any) -> dict[str, Any]:
    """Windows of inferences, after one in which nothing is done, all with the same sampling.

    `gross_j` and `net_j` an inference; null with the `reason` where there is no meter, without loading the model.
    """
    try:
        source = meter(System())
    except UnknownError as error:
        return {"gross_j": None, "net_j": None, "reason": str(error)}
    from . import bench, watch

    subject = bench.Subject(archive, options.inputs, options.threads)
    subject.warm_up(5, 1.0, 10.0)
    enough = _enough(options.window_seconds)
    beside = watch.Watch(archive.path, source.interval, options.threads, power=True) if source.interval else None
    try:
        if beside is not None:
            beside.ready()
        spans = [_span(source, lambda: _rest(options.idle_seconds))]
        spans += [_span(source, lambda: len(subject.repeat(enough))) for _ in range(options.windows)]
    finally:
        seen = beside.stop() if beside is not None else []
    samples = [(float(one["time_s"]), float(one["watts"])) for one in seen if "watts" in one]
    try:
        joules = [_joules(source, span, samples) for span in spans]
    except UnknownError as error:
        return {"gross_j": None, "net_j": None, "reason": str(error)}
    seconds = [span[1] - span[0] for span in spans]
    windows = list(zip(joules[1:], seconds[1:], [span[4] for span in spans[1:]]))
    told = {"meter": source.name, "rails": source.rails, "estimate": source.estimate, "threads": options.threads}
    return {**summary(windows, joules[0] / seconds[0]), **told}


def _enough(least_s: float) -> Callable[[int, float], bool]:
    return lambda count, seconds: count >= LEAST_INFERENCES and seconds >= least_s


def _rest(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def _span(source: Any, work: Callable[[], int]) -> tuple[float, float, Any, Any, int]:
    """Times and looks at the counters around `work`, and what it returned."""
    first = source.look() if isinstance(source, Rapl) else None
    start = time.monotonic()
    count = work()
    end = time.monotonic()
    return start, end, first, source.look() if isinstance(source, Rapl) else None, count


def _joules(source: Any, span: tuple[float, float, Any, Any, int], samples: list[tuple[float, float]]) -> float:
    start, end, first, last, _ = span
    return source.joules(first, last) if isinstance(source, Rapl) else integral(samples, start, end)
