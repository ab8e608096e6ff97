"""Rows of the table for vectors made elsewhere: `evaluate.embeddings` names finished `zscmr embed` directories.

What it is: the way to put a pretrained dual encoder (CLIP, SigLIP), another run or an imported corpus on the same queries,
galleries and relevance as the run's own method; vectors are found by id, and the captions must be the same ones.
What it is not: an encoder. Embedding costs pixels and a GPU where there is one, and is `zscmr embed`'s work; evaluation
reads what that wrote, so that the numbers are of the very vectors that would be served.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zscmr_ray.engine.checkpoint import BlockRecord
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import Manifest, read_manifest, require_manifest
from zscmr_ray.retrieval.scoring import LABEL, block_columns, has_block
from zscmr_ray.retrieval.searches import Towers, variants
from zscmr_ray.schema import provenance_of
from zscmr_ray.stages.measure.baselines import Baseline
from zscmr_ray.stages.measure.rows import EncodedRows
from zscmr_ray.storage import Store

_NAME = re.compile(r"[\w.+-]+")
_VARIANTS = {"regions": "regions", "labels": "label distributions", "both": "both (fused)"}

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class External:
    """A finished directory of vectors under the name it has in the table."""

    name: str
    store: Store
    manifest: Manifest

    @property
    def title(self) -> str:
        """The name, with the model's architecture or checkpoint and the first digits of its fingerprint."""
        info = self.manifest.info
        backbone = (info.get("image_backbone") or {}).get("id", "vectors")
        return f"{self.name} ({backbone} {str(info.get('fingerprint', ''))[:12]}, as embedded)"


def find_externals(entries: Sequence[str]) -> list[External]:
    """Return the directories that `name=<run or embeddings/>` entries name.

    Raises ConfigError for an entry that is none, DataError for embeddings that are not there or not complete.
    """
    found: list[External] = []
    for entry in entries:
        name, _, uri = entry.partition("=")
        if _NAME.fullmatch(name) is None or not uri or name in {one.name for one in found}:
            raise ConfigError(
                "evaluate.embeddings names each directory once",
                got=entry,
                expected="<name>=<run or its embeddings/>, every name another",
                remedy='--set "evaluate.embeddings=[clip=runs/clip]"',
            )
        store = Store(uri)
        own = read_manifest(store)
        store = store if own is not None and own.key.stage == "embed" else store.child("embeddings")
        found.append(External(name, store, require_manifest(store, "embed")))
    return found


def external_rows(
    externals: Sequence[External], rows: EncodedRows, *, label_weight: float | None
) -> list[Baseline]:
    """Return a row for each score that the vectors allow; both blocks fused only with a `label_weight` (none was chosen).

    Raises DataError when an evaluated item or caption has no vector or another caption, RefusedError for vectors of
    several models in one directory.
    """
    made = []
    for one in externals:
        image_ND, text_MD, blocks = read_vectors(one, rows)
        for key, towers in _towers(image_ND, text_MD, blocks, label_weight).items():
            title = one.title if key == "" else f"{one.title}, {_VARIANTS[key]}"
            made.append(Baseline(f"external_{one.name}{key and '_'}{key}", title, towers))
    return made


def external_note(externals: Sequence[External]) -> list[str]:
    """Return what a reader must know of such rows."""
    if not externals:
        return []
    names = ", ".join(one.name for one in externals)
    return [
        f"{names}: vectors made outside this training, on the same queries and galleries. What their models were trained "
        "on is not known here: classes that are unseen by this run's method may not be unseen by theirs."
    ]


def read_vectors(
    external: External, rows: EncodedRows
) -> tuple[FloatArray, FloatArray, tuple[BlockRecord, ...]]:
    """Return the vectors of the evaluated items [N, D] and captions [M, D], and their blocks."""
    corpus = rows.corpus
    sides: dict[str, FloatArray] = {}
    blocks: tuple[BlockRecord, ...] | None = None
    for side, ids, captions in (
        ("image", list(corpus.ids), None),
        ("text", corpus.text_ids(), rows.captions),
    ):
        sides[side], own = _read_side(external, side, ids, captions)
        if blocks is not None and own != blocks:
            raise _several_models(external)
        blocks = own
    assert blocks is not None
    return sides["image"], sides["text"], blocks


def _read_side(
    external: External, side: str, ids: list[str], captions: list[str] | None
) -> tuple[FloatArray, tuple[BlockRecord, ...]]:
    place, wanted = {name: row for row, name in enumerate(ids)}, pa.array(ids, pa.string())
    vectors: FloatArray | None = None
    seen: set[str] = set()
    found_N = np.zeros(len(ids), np.bool_)
    blocks: tuple[BlockRecord, ...] = ()
    columns = ["id", "vector", *(["caption"] if captions is not None else [])]
    for part in external.manifest.parts:
        if not part.name.startswith(f"{side}/") or part.rows == 0:
            continue
        with external.store.open(part.name) as file:
            table = pq.read_table(file, columns=columns)
        provenance: dict[str, Any] = provenance_of(table.schema)
        seen.add(str(provenance["fingerprint"]))
        blocks = tuple(BlockRecord.model_validate(block) for block in provenance["blocks"])
        if len(seen) > 1:
            raise _several_models(external)
        table = table.filter(pc.is_in(table.column("id"), value_set=wanted)).combine_chunks()
        chosen = [place[name] for name in table.column("id").to_pylist()]
        vectors = np.zeros((len(ids), blocks[-1].stop), np.float32) if vectors is None else vectors
        vectors[chosen] = _vectors(table, blocks[-1].stop)
        found_N[chosen] = True
        if captions is not None:
            _check_captions(external, table, [captions[row] for row in chosen])
    if vectors is None or not found_N.all():
        lost = [ids[row] for row in np.flatnonzero(~found_N)[:3]]
        raise DataError(
            f"{external.name} has no {side} vector for some of the evaluated rows",
            got=f"{int((~found_N).sum())} of {len(ids)} missing in {external.store.uri}, such as {', '.join(lost)}",
            expected="embeddings of the same input, rows found by id",
            remedy="embed the shards that this run preprocessed, with the same data section (`zscmr embed`)",
        )
    return vectors, blocks


def _vectors(table: pa.Table, dimension: int) -> FloatArray:
    flat = pa.chunked_array(table.column("vector")).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(table.num_rows, dimension)


def _check_captions(external: External, table: pa.Table, expected: list[str]) -> None:
    """The same ids with other words (masked here, plain there) would be another task."""
    for name, got, caption in zip(
        table.column("id").to_pylist(), table.column("caption").to_pylist(), expected, strict=True
    ):
        if got != caption:
            raise DataError(
                f"{external.name} embeds another caption than the one evaluated",
                got=f"{name}: {got!r}",
                expected=repr(caption),
                remedy="embed with this run's data section (data.mask_class_words, data.columns.caption ...)",
            )


def _towers(
    image_ND: FloatArray, text_MD: FloatArray, blocks: tuple[BlockRecord, ...], label_weight: float | None
) -> dict[str, Towers]:
    """By variant; the one score of vectors with one block is called ''."""
    if len(blocks) == 1:
        columns = block_columns(blocks, blocks[0].name)
        return {"": Towers.symmetric(image_ND[:, columns], text_MD[:, columns])}
    found = variants(image_ND, text_MD, blocks, label_weight=label_weight or 0.0)
    if label_weight is None and has_block(blocks, LABEL):
        found.pop("both", None)
    return found


def _several_models(external: External) -> RefusedError:
    return RefusedError(
        "vectors of different models are never mixed",
        got=f"{external.store.uri}: more than one fingerprint",
        remedy="embed again (`zscmr embed --overwrite`)",
    )


def fingerprints(externals: Sequence[External]) -> list[Any]:
    """Return what a report depends on of the directories: names and contents, not places."""
    return [[one.name, one.manifest.fingerprint] for one in externals]
