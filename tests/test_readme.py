"""README and docs stay true: the tree, the links, the verbs and the settings they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zscmr_ray.cli.main import app
from zscmr_ray.config.load import all_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "cluster").glob("*.md"))]
GENERATED = {"config.md"}


def test_the_tree_names_every_part_of_the_package() -> None:
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "zscmr_ray").iterdir():
        if path.name.startswith(("_", ".")) or path.name == "py.typed":
            continue
        name = f"{path.name}/" if path.is_dir() else path.name
        assert re.search(rf"^  {re.escape(name)}\s", text, re.MULTILINE), (
            f"{name} is missing in README's tree"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_verbs_and_settings_exist(page: Path) -> None:
    commands = app.registered_commands
    verbs = {one.name or getattr(one.callback, "__name__", "") for one in commands} | {"config"}
    keys = set(all_keys())
    text = page.read_text()
    for verb in re.findall(r"^zscmr (\w+)", text, re.MULTILINE):
        assert verb in verbs, f"{page.name}: zscmr {verb}"
    for key in re.findall(r"--set ([a-z_.]+)=", text):
        assert key in keys, f"{page.name}: --set {key}"


def test_test_names_cited_in_docs_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`(tests/[\w/]+\.py)(?:::\w+)?`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} cites {name}"
