"""What every benchmark prints and writes: one JSON object, its value measured against a baseline in the same run.

`value` is the first ratio a benchmark is about, larger is better; `bar` what it must reach; `holds` whether every bar
of the file holds. `value` is None, with the reason in `detail`, where the hardware is missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "ray",
    "torch",
    "deepspeed",
    "pyarrow",
    "transformers",
    "faiss-cpu",
    "numpy",
    "pillow",
    "simplejpeg",
)


def report(
    *,
    name: str,
    value: float | None,
    bar: float,
    holds: bool,
    unit: str,
    detail: dict[str, object],
    seed: int = 0,
) -> None:
    """Print the result as the last line of stdout and write it, with machine and versions, to results/<name>.json.

    A result without a value never takes the place of a measured one.
    """
    rounded = None if value is None else round(value, 4)
    result = {"name": name, "value": rounded, "bar": bar, "holds": holds, "unit": unit, "detail": detail}
    RESULTS.mkdir(exist_ok=True)
    record = result | {"machine": machine(), "versions": versions(), "seed": seed}
    path = RESULTS / f"{name}.json"
    if value is not None or not path.exists() or json.loads(path.read_text())["value"] is None:
        path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    print(json.dumps(result, sort_keys=True), flush=True)


def machine() -> dict[str, object]:
    """The processor and its core count; no host names."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Versions of the packages that decide speed."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
