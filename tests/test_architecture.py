"""The house's rules that a machine can check: floors, one-file homes, file length, docstrings, no import effects."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zscmr_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 300

FLOORS = {
    "errors": 0, "config": 0, "recipes": 0, "schema": 0, "storage": 0, "manifest": 0, "lease": 0, "claim": 0, "machine": 0,
    "progress": 0,
    "data": 1, "models": 1, "losses": 1, "retrieval": 1,
    "engine": 2,
    "stages": 3, "serving": 3, "client": 3, "retriever": 3,
    "cli": 4,
}  # fmt: skip
# The lowest floor, and the only top-level names, that may import a third-party package.
MIN_FLOOR = {"torch": 1, "transformers": 1, "faiss": 1, "PIL": 1, "deepspeed": 2, "ray": 3, "fastapi": 3}
HOMES = {
    "deepspeed": {"engine/deepspeed.py"},
    "s3fs": {"storage/s3_request.py"},
    "fsspec": {"storage/s3_request.py"},
}
MAY_NOT = {"client": {"ray", "torch", "zscmr_ray.serving", "zscmr_ray.stages"}, "retriever": {"ray"}}


def _floor(path: Path) -> int:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return 0 if parts[0] == "__init__" else FLOORS[parts[0]]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    floor, own = _floor(path), path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top == "zscmr_ray" and rest and rest.split(".")[0] in FLOORS:
            other = rest.split(".")[0]
            assert FLOORS[other] <= floor, f"{path} (floor {floor}) imports {name} (floor {FLOORS[other]})"
        if top in MIN_FLOOR:
            assert floor >= MIN_FLOOR[top], f"{path} (floor {floor}) imports {name}"
        if top in HOMES:
            assert str(path.relative_to(PACKAGE)) in HOMES[top], f"{name} belongs in {HOMES[top]}"
        for forbidden in MAY_NOT.get(own, ()):
            assert not (name == forbidden or name.startswith(f"{forbidden}.")), f"{path} imports {name}"


def test_stages_never_import_each_other() -> None:
    stages = {
        "preprocess",
        "train",
        "evaluate",
        "embed",
        "index",
        "ablate",
        "doctor",
        "convert",
        "duplicates",
        "export",
    }
    for name in stages:
        for path in [PACKAGE / "stages" / f"{name}.py", *(PACKAGE / "stages" / name).rglob("*.py")]:
            if not path.exists():
                continue
            others = {f"zscmr_ray.stages.{other}" for other in stages - {name}}
            assert not (_imports(path) & others), path


@pytest.mark.parametrize(
    "path",
    [
        *FILES,
        *sorted((ROOT / "tests").rglob("*.py")),
        *(ROOT / "jobs").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES, f"{path} is longer than {MAX_LINES} lines: find the seam"
    if text.strip() and path.name != "__init__.py":
        assert path.parts[-2] == "tests" or "tests" in path.parts or ast.get_docstring(ast.parse(text)), path
    if PACKAGE in path.parents:
        assert ast.get_docstring(ast.parse(text)), f"{path} has no module docstring"


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert path.read_text().count("\n") <= 30, path


def test_no_vague_file_names() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]


def test_importing_everything_has_no_side_effect(tmp_path: Path) -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = (
        f"import importlib, os, threading\nnames = {modules!r}\n"
        "before = threading.active_count()\n"
        "for name in names: importlib.import_module(name)\n"
        "import ray\nassert not ray.is_initialized()\n"
        "assert not os.listdir('.'), os.listdir('.')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", done.stdout


def test_floor_zero_and_client_do_without_torch_and_ray(tmp_path: Path) -> None:
    names = [f"zscmr_ray.{name}" for name, floor in FLOORS.items() if floor == 0] + ["zscmr_ray.client"]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "assert not {'torch', 'ray', 'deepspeed'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_machine_paths_or_pickle_in_the_project() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert "/wo" + "rk/" not in text, name
            if path.suffix == ".py" and name.startswith("zscmr_ray/"):
                assert "import pickle" not in text and "weights_only=False" not in text, name
