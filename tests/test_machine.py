"""CPUs and memory are the container's where it has limits; a child's peak is its own, whatever its parent held."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zscmr_ray import machine
from zscmr_ray.machine import peak_rss_bytes

_CHILD = """
from zscmr_ray.machine import peak_rss_bytes
before = peak_rss_bytes()
held = bytearray(b"x") * (100 << 20)
del held
print(before, peak_rss_bytes())
"""


def test_the_peak_is_of_this_program_and_outlives_what_was_freed() -> None:
    held = bytearray(b"x") * (400 << 20)
    assert peak_rss_bytes() >= len(held)
    output = subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True, text=True).stdout
    before, after = map(int, output.split())
    assert before < 200 << 20
    assert (100 << 20) <= after - before + (20 << 20) < (150 << 20)


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 GB, half of it free, and a container without limits."""
    files = {
        "meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\n",
        "memory.max": "max\n",
        "memory.current": "3000000000\n",
        "memory.stat": "anon 2500000000\ninactive_file 500000000\nactive_file 0\n",
        "cpu.max": "max 100000\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


def test_without_limits_cpus_and_memory_are_the_machine_s(cgroup: Path) -> None:
    assert (machine.total_bytes(), machine.available_bytes()) == (16_000_000 << 10, 8_000_000 << 10)
    assert machine.num_cpus() == len(os.sched_getaffinity(0))


def test_a_container_s_limits_count_and_its_page_cache_is_free(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("4000000000\n")
    (cgroup / "cpu.max").write_text("50000 100000\n")
    assert (machine.total_bytes(), machine.available_bytes()) == (4_000_000_000, 1_500_000_000)
    assert machine.num_cpus() == 0.5


def test_where_the_kernel_says_nothing_memory_is_unbounded(cgroup: Path) -> None:
    for path in cgroup.iterdir():
        path.unlink()
    assert (machine.total_bytes(), machine.available_bytes()) == (sys.maxsize, sys.maxsize)
    assert machine.num_cpus() >= 1
