"""What only some boards tell, by the documentation of Raspberry Pi, NVIDIA (Jetson Linux) and the kernel (hwmon)."""

from __future__ import annotations

import re
from typing import Any

from .system import System, UnknownError

KINDS = (
    ("raspberry-pi-5", r"raspberry pi (5|compute module 5|500)"),
    ("raspberry-pi-4", r"raspberry pi (4|compute module 4|400)"),
    ("raspberry-pi", r"raspberry pi"),
    ("jetson-orin-nano", r"orin nano"),
    ("jetson-orin-nx", r"orin nx"),
    ("jetson-agx-orin", r"agx orin"),
    ("jetson", r"jetson|nvidia.*(xavier|tegra|thor)"),
)
"""Kind of board, and what its device-tree model says (without case)."""

BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of `get_throttled` that hold now; the same 16 places up hold since boot."""

OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


def board(system: System) -> dict[str, Any]:
    """`{"kind", "model"}` by the device tree, else by the product name of the firmware (DMI)."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        try:
            model = system.text(path)
        except UnknownError:
            continue
        return {
            "kind": next((kind for kind, words in KINDS if re.search(words, model.lower())), "other"),
            "model": model,
        }
    try:
        return {"kind": "pc", "model": system.text("sys/class/dmi/id/product_name")}
    except UnknownError:
        return {"kind": "other", "model": None}


def throttled(system: System) -> dict[str, Any]:
    """A Raspberry Pi's `{"value", "now", "since_boot"}`, from the firmware's file or from `vcgencmd`."""
    _only(system, "raspberry-pi")
    try:
        text = system.text("sys/devices/platform/soc/soc:firmware/get_throttled")
        value = int(text, 16)
    except ValueError:
        said = system.run(["vcgencmd", "get_throttled"])
        found = re.search(r"throttled=(0x[0-9a-fA-F]+)", said)
        if found is None:
            raise UnknownError(f"vcgencmd get_throttled said {said.strip()[:60]!r}") from None
        value = int(found.group(1), 16)
    return {
        "value": hex(value),
        "now": [name for bit, name in BITS.items() if value >> bit & 1],
        "since_boot": [name for bit, name in BITS.items() if value >> (bit + 16) & 1],
    }


def under_voltage(system: System) -> bool:
    """Whether the supply of a Raspberry Pi is too low now, by the kernel's own driver `rpi_volt`."""
    _only(system, "raspberry-pi")
    folders = system.hwmon("rpi_volt")
    if not folders:
        raise UnknownError("no hwmon named rpi_volt")
    return bool(system.number(folders[0] + "/in0_lcrit_alarm"))


def power_mode(system: System) -> str:
    """The name of a Jetson's power mode (its number means another mode on another module): "15W", "MAXN"."""
    _only(system, "jetson")
    try:
        said = system.run(["nvpmodel", "-q"])
        found = re.search(r"NV Power Mode:\s*(\S+)", said)
        if found is not None:
            return found.group(1)
        reason = f"nvpmodel -q said {said.strip()[:60]!r}"
    except UnknownError as error:
        reason = str(error)
    try:
        number = int(system.text("var/lib/nvpmodel/status").rpartition(":")[2])
        lines = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", system.text("etc/nvpmodel.conf"))
        return {int(key): str(name) for key, name in lines}[number]
    except (UnknownError, ValueError, KeyError) as error:
        raise UnknownError(f"{reason}; nor do nvpmodel's files tell it ({error})") from None


def over_current_events(system: System) -> dict[str, int]:
    """How often a Jetson was slowed down for its supply since boot: only what these grow by means something."""
    _only(system, "jetson")
    folders = system.hwmon("soctherm_oc")
    if not folders:
        raise UnknownError("no hwmon named soctherm_oc")
    counts = {}
    for path in system.find(folders[0] + "/oc*_event_cnt"):
        name = path.rpartition("/")[2].partition("_")[0]
        counts[OVER_CURRENT.get(name, name)] = int(system.number(path))
    if not counts:
        raise UnknownError("soctherm_oc has no event counters")
    return counts


def rails(system: System) -> dict[str, float]:
    """Power of each rail that an INA3221 senses, in watts, by its label: bus voltage (mV) times current (mA)."""
    found = {}
    for folder in system.hwmon("ina3221"):
        for path in system.find(folder + "/in[123]_label"):
            channel, label = path[len(folder) + 3], system.text(path)
            try:
                volts = system.number(f"{folder}/in{channel}_input", 1e-3)
                found[label] = volts * system.number(f"{folder}/curr{channel}_input", 1e-3)
            except UnknownError:  # a channel that is switched off or not connected ("NC") has no reading
                continue
    if not found:
        raise UnknownError("no hwmon named ina3221 with a readable channel")
    return found


def gpu_mhz(system: System) -> float:
    """The clock of a Jetson's GPU, by the name of its device-tree node."""
    _only(system, "jetson")
    for path in system.find("sys/class/devfreq/*/cur_freq"):
        folder = path[: -len("/cur_freq")]
        for node in ("/of_node/name", "/device/of_node/name"):
            try:
                if re.search("gpu|ga10b|gv11b|gp10b", system.text(folder + node)):
                    return system.number(path, 1e-6)
            except UnknownError:
                continue
    raise UnknownError("no GPU under sys/class/devfreq")


def _only(system: System, family: str) -> None:
    kind = board(system)["kind"]
    if not kind.startswith(family):
        raise UnknownError(f"only a {'Raspberry Pi' if family == 'raspberry-pi' else 'Jetson'} tells this")
