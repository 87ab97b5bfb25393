"""Files and commands as boards have them, for the readers of the device's state: see boards/README.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.agent.system import UnknownError

CPU = "sys/devices/system/cpu/cpu{}/"
MEMORY = "MemTotal: {} kB\nMemFree: 1000 kB\nMemAvailable: {} kB\nSwapTotal: 204784 kB\nSwapFree: 204272 kB\n"
COMMON = {
    "proc/loadavg": "0.52 0.31 0.11 1/203 4711\n",
    "proc/sys/kernel/random/boot_id": "3d1c1d0a-9f6b-4a55-8c7e-0d5f8f3f6a11\n",
    "proc/stat": "cpu  4000 0 1000 95000 0 0 0 0 0 0\n",
}
PMIC = """\
 3V7_WL_SW_A current(0)=0.00097585A
   3V3_SYS_A current(1)=0.06831020A
   1V8_SYS_A current(2)=0.16980300A
  VDD_CORE_A current(7)=1.50000000A
 3V7_WL_SW_V volt(8)=3.72150000V
   3V3_SYS_V volt(9)=3.31000000V
   1V8_SYS_V volt(10)=1.80000000V
  VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.10000000V
      BATT_V volt(25)=0.00000000V
"""
"""Currents come first, then voltages; rails without a current (the input, the clock's battery) are not summed."""


class Tree:
    """A root folder with files, and the commands of that board."""

    def __init__(self, root: Path, files: Mapping[str, str], commands: Mapping[str, str] | None = None) -> None:
        self.root, self.commands = str(root), dict(commands or {})
        for name, text in files.items():
            self.set(name, text)

    def set(self, name: str, text: str) -> None:
        """Write one file."""
        path = Path(self.root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, arguments: Sequence[str]) -> str:
        """What a command prints there."""
        try:
            return self.commands[" ".join(arguments)]
        except KeyError:
            raise UnknownError(f"{arguments[0]} is not installed") from None


def _cpufreq(cores: int, governor: str, least: int, now: int, most: int) -> dict[str, str]:
    values = {
        "scaling_governor": governor,
        "scaling_min_freq": least,
        "scaling_cur_freq": now,
        "scaling_max_freq": most,
    }
    return {CPU.format(i) + "cpufreq/" + name: f"{value}\n" for i in range(cores) for name, value in values.items()}


def _zones(*zones: tuple[str, int]) -> dict[str, str]:
    files = {}
    for i, (name, value) in enumerate(zones):
        files[f"sys/class/thermal/thermal_zone{i}/type"] = name + "\n"
        files[f"sys/class/thermal/thermal_zone{i}/temp"] = f"{value}\n"
    return files


def _pi(root: Path, model: str, part: str, features: str, most: int, memory: int) -> Tree:
    return Tree(
        root,
        {
            **COMMON,
            **_cpufreq(4, "ondemand", 600000, most, most),
            **_zones(("cpu-thermal", 53100)),
            "proc/device-tree/model": model + "\0",
            "proc/cpuinfo": f"processor\t: 0\nFeatures\t: {features}\nCPU part\t: {part}\n\nprocessor\t: 1\n",
            "proc/meminfo": MEMORY.format(memory, memory // 2),
            "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
            "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
            "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
            "sys/class/thermal/cooling_device0/cur_state": "0\n",
        },
        {"vcgencmd get_throttled": "throttled=0x0\n"},
    )


def raspberry_pi_4(root: Path) -> Tree:
    """BCM2711: no dot products, no current sensing."""
    return _pi(root, "Raspberry Pi 4 Model B Rev 1.4", "0xd08", "fp asimd evtstrm crc32 cpuid", 1500000, 3885396)


def raspberry_pi_5(root: Path) -> Tree:
    """BCM2712, with the voltages and currents that its power chip measures."""
    features = "fp asimd evtstrm aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    tree = _pi(root, "Raspberry Pi 5 Model B Rev 1.0", "0xd0b", features, 2400000, 8245168)
    tree.commands["vcgencmd pmic_read_adc"] = PMIC
    return tree


def jetson_orin_nano(root: Path) -> Tree:
    """JetPack 6, clocks locked by jetson_clocks, power mode 15W."""
    rails = {1: ("VDD_IN", 4984, 1856), 2: ("VDD_CPU_GPU_CV", 4984, 600), 3: ("VDD_SOC", 4984, 504)}
    files = {
        **COMMON,
        **_cpufreq(6, "schedutil", 1510400, 1510400, 1510400),
        **_zones(("cpu-thermal", 48500), ("gpu-thermal", 47250), ("soc0-thermal", 46900), ("tj-thermal", 48500)),
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimddp\nCPU part\t: 0xd42\n",
        "proc/meminfo": MEMORY.format(7802944, 5000000),
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=7W >\n",
        "var/lib/nvpmodel/status": "pmode:0001",
        "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
        "sys/class/devfreq/17000000.gpu/of_node/name": "gpu\0",
        "sys/class/thermal/cooling_device0/type": "thermal-cpufreq-0\n",
        "sys/class/thermal/cooling_device0/cur_state": "0\n",
        "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
        "sys/class/thermal/cooling_device1/cur_state": "3\n",
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
    }
    for channel, (label, millivolts, milliamperes) in rails.items():
        files[f"sys/class/hwmon/hwmon1/in{channel}_label"] = label + "\n"
        files[f"sys/class/hwmon/hwmon1/in{channel}_input"] = f"{millivolts}\n"
        files[f"sys/class/hwmon/hwmon1/curr{channel}_input"] = f"{milliamperes}\n"
    for i, count in enumerate((0, 2, 5), 1):
        files[f"sys/class/hwmon/hwmon3/oc{i}_event_cnt"] = f"{count}\n"
    return Tree(root, files, {"nvpmodel -q": "NV Power Mode: 15W\n0\n"})


def x86(root: Path) -> Tree:
    """A PC with cpufreq (intel_pstate), RAPL with its two levels of zones, and counters of thermal throttling."""
    files = {
        **COMMON,
        **_cpufreq(4, "powersave", 800000, 2900000, 4200000),
        **_zones(("acpitz", 27800), ("x86_pkg_temp", 61000)),
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel Core i5\nflags\t: sse4_2 avx avx2 fma f16c avx_vnni\n",
        "proc/meminfo": MEMORY.format(16000000, 9000000),
        "sys/class/dmi/id/product_name": "NUC11TNHi5\n",
    }
    for i in range(4):
        files[CPU.format(i) + "thermal_throttle/core_throttle_count"] = "2\n"
        files[CPU.format(i) + "thermal_throttle/package_throttle_count"] = "3\n"
    zones = {"0": "package-0", "0:0": "core", "0:1": "uncore", "0:2": "dram"}
    for zone, name in zones.items():
        folder = f"sys/class/powercap/intel-rapl:{zone}/"
        files[folder + "name"] = name + "\n"
        files[folder + "energy_uj"] = "1000000\n"
        files[folder + "max_energy_range_uj"] = "262143328850\n"
    return Tree(root, files)


def virtual_machine(root: Path) -> Tree:
    """A guest that shows its processor and its memory, and nothing else."""
    cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.148\nflags\t\t: avx2 fma\n\nprocessor\t: 1\n"
    return Tree(root, {**COMMON, "proc/cpuinfo": cpuinfo, "proc/meminfo": MEMORY.format(8000000, 6000000)})


BOARDS: dict[str, Callable[[Path], Tree]] = {
    "raspberry-pi-4": raspberry_pi_4,
    "raspberry-pi-5": raspberry_pi_5,
    "jetson-orin-nano": jetson_orin_nano,
    "x86": x86,
    "virtual-machine": virtual_machine,
}
