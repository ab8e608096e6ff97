"""A process of its own that reads mutants and says how each ended, so that a crash, a hang or a leak is a finding.

`python -m tests.data.mutation_child <suite> <num> <seed> <journal>`: the last line of the journal is the mutant being
read, for the parent to name when this process dies. Prints one JSON object.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.data.mutate import mutants
from tests.data.mutation_pictures import pictures
from zscmr_ray.data.decode import decode_image
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.machine import peak_rss_bytes
from zscmr_ray.schema import RejectCode

# No mutant takes a second; the bound is for loops that never end, on a machine that may be busy.
SECONDS_A_CASE = 120
MAX_GROWTH_MB = 300

JPEG = b"\xff\xd8\xff"
Case = tuple[str, Callable[[], str]]


def picture_cases(num: int, seed: int) -> Iterator[Case]:
    """Decode mutants of every kind of picture; a thunk returns `decoded` or the reject code, and raises for a fault."""
    for name, specimen in pictures().items():
        every = mutants(specimen.data, num, seed=seed, places=specimen.places, repair=specimen.repair)
        for number, mutant in enumerate(every):
            said = f"{number} {mutant.how} at {mutant.start}"
            yield f"{name} {said}", partial(decode, mutant.data, size_px=32, thumbnail_px=32)
            if specimen.data.startswith(JPEG):
                # At half its size: a picture of 28 pixels has twice what 8 need.
                yield f"{name}-scaled {said}", partial(decode, mutant.data, size_px=8, scaled_jpeg=True)


def decode(data: bytes, *, size_px: int, thumbnail_px: int | None = None, scaled_jpeg: bool = False) -> str:
    """`decoded` or the reject code; raises for a fault."""
    try:
        image = decode_image(
            data,
            size_px=size_px,
            crop_fraction=0.875,
            interpolation="bicubic",
            max_pixels=1_000_000,
            thumbnail_px=thumbnail_px,
            scaled_jpeg=scaled_jpeg,
        )
    except ImageRejected as rejected:
        assert rejected.code in RejectCode and 0 < len(rejected.reason) <= 400
        rejected.reason.encode()
        return rejected.code.value
    assert image.pixels_HW3.shape == (size_px, size_px, 3)
    assert image.width_px * image.height_px <= 1_000_000
    return "decoded"


def run(cases: Iterator[Case], journal: Path) -> dict[str, object]:
    """Run every case; a fault is one that raised, or that made the process grow."""
    outcomes: dict[str, Counter[str]] = {}
    faults: list[str] = []
    with journal.open("w", buffering=1) as log:
        peak_bytes = peak_rss_bytes()
        for name, check in cases:
            log.write(name + "\n")
            faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
            group = outcomes.setdefault(name.split()[0], Counter())
            try:
                group[check()] += 1
            except Exception:
                group["FAULT"] += 1
                faults.append(f"{name}\n{traceback.format_exc(limit=-3)}")
            now_bytes = peak_rss_bytes()
            if now_bytes - peak_bytes > MAX_GROWTH_MB << 20:
                faults.append(f"{name} grew the process by {(now_bytes - peak_bytes) >> 20} MB")
            peak_bytes = now_bytes
    faulthandler.cancel_dump_traceback_later()
    return {"outcomes": outcomes, "faults": faults, "peak_mb": peak_bytes >> 20}


def main() -> None:
    """Run one suite."""
    from tests.data import mutation_bombs, mutation_cells, mutation_shards

    suite, num, seed, journal = sys.argv[1:]
    faulthandler.enable()
    # As in production: damaged metadata makes PIL warn, not fail.
    warnings.simplefilter("ignore")
    suites = {"pictures": picture_cases, **mutation_shards.SUITES, **mutation_cells.SUITES}
    suites |= mutation_bombs.SUITES
    print(json.dumps(run(suites[suite](int(num), int(seed)), Path(journal))))


if __name__ == "__main__":
    main()
