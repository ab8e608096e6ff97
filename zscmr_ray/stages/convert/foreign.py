"""Whose vectors a clip-retrieval directory holds: what our own export says of them, or what the user declares.

Vectors of another program carry no hash of the model that made them, so their fingerprint is the hash of the declared
name and of every file's contents: two imports are never taken for the same model by mistake. Nothing here can encode
a question for them; serving answers vector and id queries and refuses texts and pictures (serving/foreign.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import Manifest, hash_json, read_manifest
from zscmr_ray.stages.convert.layout import NumberedFiles
from zscmr_ray.storage import Store

# The one block of foreign vectors: weighed like our region block, for there is no label distribution beside it.
BLOCK = "region"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The checked source: contents hash, what is said of its vectors, and the names our own export gave its parts."""

    contents: str
    model: dict[str, Any]
    part_names: tuple[str, ...]

    @property
    def is_foreign(self) -> bool:
        """Whether another program made the vectors."""
        return "foreign" in self.model


def read_source(
    source: Store, files: list[NumberedFiles], *, model_name: str | None, dimension: int
) -> SourceFacts:
    """Hash every file and say whose vectors they are.

    Raises ConfigError when nobody names the model, or two do; DataError when our own export was changed since.
    """
    checksums = {info.key: source.sha256(info.key) for numbered in files for info in numbered.files.values()}
    contents = hash_json(sorted(checksums.items()))
    export = read_manifest(source)
    if export is not None and export.info.get("layout") == "clip-retrieval":
        if model_name is not None:
            raise ConfigError(
                "these vectors say themselves which model made them",
                got=f"--model-name {model_name}",
                expected=f"none: {source.uri}/manifest.json names {export.info['model']['fingerprint']}",
            )
        _check_unchanged(source, export, checksums)
        return SourceFacts(contents, dict(export.info["model"]), tuple(export.info["parts"]))
    if not model_name:
        raise ConfigError(
            "nothing says which model made these vectors",
            got=source.uri,
            expected="the name of the model",
            remedy="--model-name ViT-B/32 (any words: vectors of different names or files are never mixed)",
        )
    declared = {"layout": "clip-retrieval", "model_name": model_name, "contents": contents}
    model = {
        "fingerprint": hash_json(declared | {"dimension": dimension}),
        "blocks": [{"name": BLOCK, "start": 0, "stop": dimension}],
        "dimension": dimension,
        "foreign": declared,
    }
    return SourceFacts(contents, model, ())


def _check_unchanged(source: Store, export: Manifest, checksums: dict[str, str]) -> None:
    listed = {part.name: part.sha256 for part in export.parts}
    changed = sorted(
        name for name in listed.keys() | checksums.keys() if listed.get(name) != checksums.get(name)
    )
    if changed:
        raise DataError(
            "the exported files are not those of their manifest",
            got=f"{source.uri}: {len(changed)} of them, first {changed[0]}",
            expected="the files as `zscmr convert --to clip-retrieval` wrote them",
            remedy="export again; or delete manifest.json there and declare the vectors with --model-name",
        )
