"""The doctor reads what the kernel and pip say."""

from __future__ import annotations

import pytest

from edgekit.doctor import INT8_FEATURES, _notes, cpu_flags, diagnose, extras, installed, memory_bytes

PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41

Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
HASWELL = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-4570\nflags\t\t: fpu sse4_2 fma avx avx2 bmi2\n"


def test_features_in_the_kernels_words():
    assert cpu_flags(PI_4) == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    assert "avx2" in cpu_flags(HASWELL)
    assert cpu_flags("") == frozenset()


@pytest.mark.parametrize(
    ("arch", "cpuinfo", "note"),
    [
        ("x86_64", HASWELL, "No VNNI: use the target x86-64-no-vnni here"),
        ("aarch64", PI_4, "No 8-bit dot products (asimddp)"),
        ("x86_64", HASWELL.replace("avx2", "avx2 avx_vnni"), None),
        ("aarch64", PI_4.replace("crc32", "crc32 asimddp"), None),
    ],
)
def test_what_matters_to_int8_is_said(arch, cpuinfo, note):
    flags = cpu_flags(cpuinfo)
    notes = [n for n in _notes(arch, {name: name in flags for name in INT8_FEATURES[arch]}) if "Python" not in n]
    assert [n.startswith(note) for n in notes] == [True] if note else notes == []


def test_memory():
    assert memory_bytes("MemTotal:        8131428 kB\nMemFree: 1 kB\n") == 8131428 * 1024
    assert memory_bytes("") is None


def test_extras_come_from_the_metadata():
    found = {extra.name: extra for extra in extras([
        "numpy>=1.26",
        "pytest>=8; extra == 'dev'",
        "absent-package>=1; extra == 'dev'",
        "edgekit-toolchain[onnx]; extra == 'torch'",
        "tensorrt-rtx==1.7; (platform_machine == 'x86_64') and extra == \"tensorrt\"",
    ])}  # fmt: skip
    assert set(found) == {"dev", "tensorrt"}
    assert found["dev"].packages["pytest"] == pytest.__version__
    assert found["dev"].packages["absent-package"] is None
    assert not found["dev"].complete
    assert found["dev"].command == "pip install 'edgekit-toolchain[dev]'"


def test_versions_are_those_that_are_installed():
    import numpy

    assert installed("numpy") == numpy.__version__
    assert installed("no-such-package") is None


def test_every_backend_is_looked_at():
    from edgekit.backends import BACKENDS

    found = diagnose()
    assert {state.name for state in found.backends} >= set(BACKENDS)
    for state in found.backends:
        possible = state.availability.compiles and state.availability.runs
        assert possible or state.availability.reason
        assert possible or state.name not in BACKENDS or state.command.startswith("pip install")
