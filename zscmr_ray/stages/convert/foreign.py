"""Whose vectors a clip-retrieval directory holds: what our own export says of them, or what the user declares.

A declared model that we can load (`hf:<id>`, a checkpoint) gives them its fingerprint, and text queries work. Any
other words are a foreign model: the fingerprint is the hash of the words and of every file's contents, so that two
imports are never taken for one model by mistake; vectors and ids can be asked for, texts and pictures cannot
(serving/vectors_only.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import Manifest, hash_json, read_manifest
from zscmr_ray.schema import FOREIGN_MODEL
from zscmr_ray.stages.convert.layout import NumberedFiles
from zscmr_ray.storage import Store

# The one block of foreign vectors, named as that of a pretrained dual encoder: no label distribution beside it.
BLOCK = "global"
# Where a folder that `embed.model` may name keeps its meta.json (engine/vector_model.py).
_CHECKPOINT_MARKS = ("meta.json", "checkpoint/meta.json")


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The checked source.

    `contents` is its hash, `vectors` what every part says of its vectors, `model` who encodes queries (as `embed.model`,
    or FOREIGN_MODEL and words), `part_names` what our own export gave its parts.
    """

    contents: str
    vectors: dict[str, Any]
    model: str
    part_names: tuple[str, ...] = ()


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
                expected=f"none: {source.uri}/manifest.json names {export.info['vectors']['fingerprint']}",
            )
        _check_unchanged(source, export, checksums)
        info = export.info
        return SourceFacts(contents, dict(info["vectors"]), str(info["model"]), tuple(info["parts"]))
    if not model_name:
        raise ConfigError(
            "nothing says which model made these vectors",
            got=source.uri,
            expected="the name of the model",
            remedy="--model-name hf:<id> or a checkpoint (text queries will work), or any words, e.g. ViT-B/32",
        )
    declared = {"layout": "clip-retrieval", "model_name": model_name, "contents": contents}
    known = _loadable(model_name, dimension=dimension)
    if known is not None:
        return SourceFacts(contents, known[0] | {"declared": declared}, known[1])
    vectors = {
        "fingerprint": hash_json(declared | {"dimension": dimension}),
        "blocks": [{"name": BLOCK, "start": 0, "stop": dimension}],
        "dimension": dimension,
        "foreign": declared,
    }
    return SourceFacts(contents, vectors, f"{FOREIGN_MODEL}{model_name}")


def _loadable(model_name: str, *, dimension: int) -> tuple[dict[str, Any], str] | None:
    """What a model of ours or of Hugging Face says of its vectors, and its name; None when the name is mere words."""
    if not model_name.startswith("hf:") and not any(
        Store(model_name).exists(key) for key in _CHECKPOINT_MARKS
    ):
        return None
    # Here and not above: torch costs seconds and 150 MB, and foreign vectors need none of it.
    from zscmr_ray.engine.vector_model import find_model, read_facts

    place = find_model(model_name, own=Store(model_name))
    facts = read_facts(place)
    if facts.dimension != dimension:
        raise DataError(
            "these vectors are not of the model that is named",
            got=f"{dimension} numbers a vector",
            expected=f"{facts.dimension}, as {model_name} makes them",
        )
    return facts.provenance(), place.name


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
