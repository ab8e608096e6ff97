"""A child's peak is its own, whatever its parent held when it was started."""

from __future__ import annotations

import subprocess
import sys

from zscmr_ray.memory import peak_rss_bytes

_CHILD = """
from zscmr_ray.memory import peak_rss_bytes
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
