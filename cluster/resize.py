"""Write the sizes of `sizes.yaml` into the lines that name them, so that no number is kept twice by hand.

A line `maxReplicas: 8  # = {decode.max_nodes}` says what it must be: everything after `# =` is a Python format string
over the sizes. Run it after a change of sizes.yaml; `--check` changes nothing and ends with 1 when a line differs.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SIZES = ROOT / "cluster" / "sizes.yaml"
_MARKED = re.compile(r"^(?P<key>\s*(?:- )?[^\s#][^:#]*: )(?P<value>.*?) +# = (?P<form>.+)$", re.MULTILINE)


def read_sizes() -> dict[str, Any]:
    """The sizes, with the numbers that follow from them."""
    sizes = yaml.safe_load(SIZES.read_text())
    # Every encoder has a GPU of its own; on an autoscaling cluster nothing else says how many there may be.
    for profile in (sizes, sizes["dev"]):
        encode = sizes["encode"] | profile["encode"]
        profile["embed"] = {"encoders": max(1, encode["max_nodes"] * encode["gpus"])}
    sizes["workers"] = {"max_nodes": sizes["decode"]["max_nodes"] + sizes["encode"]["max_nodes"]}
    sizes["idle_timeout_s"] = 60 * sizes["idle_timeout_minutes"]
    return {name: _namespace(value) for name, value in sizes.items()}


def resized(text: str, sizes: dict[str, Any]) -> str:
    """A file's text with every marked value as the sizes say.

    >>> resized("cpu: 1 # = {decode.cpus}", {"decode": SimpleNamespace(cpus=16)})
    'cpu: 16 # = {decode.cpus}'
    """
    return _MARKED.sub(lambda line: f"{line['key']}{line['form'].format(**sizes)} # = {line['form']}", text)


def sized_files() -> list[Path]:
    """The files that may hold marked lines."""
    return [ROOT / "ray_config.yaml", *sorted(path for path in SIZES.parent.rglob("*.yaml") if path != SIZES)]


def main() -> int:
    """Rewrite the files, or with `--check` say what would change."""
    parser = argparse.ArgumentParser(
        description="Write the sizes of sizes.yaml into the files that name them."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a line differs")
    check, sizes, differs = parser.parse_args().check, read_sizes(), False
    for path in sized_files():
        before = path.read_text()
        after, name = resized(before, sizes), str(path.relative_to(ROOT))
        if before != after:
            differs = True
            lines = difflib.unified_diff(
                before.splitlines(), after.splitlines(), name, name, lineterm="", n=0
            )
            print("\n".join(lines))
            if not check:
                path.write_text(after)
    return int(check and differs)


def _namespace(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return SimpleNamespace(**{name: _namespace(inner) for name, inner in value.items()})


if __name__ == "__main__":
    sys.exit(main())
