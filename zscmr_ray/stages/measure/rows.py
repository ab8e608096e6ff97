"""The rows an evaluation needs, read part by part and encoded: vectors, region weights, and the baselines' features.

What it is: one pass over the pairs for ids, labels and partitions, a second for the features of the rows that take
part (train and test of the classes of the split, or all train and test rows without classes). Feature maps are
dropped as soon as a part is encoded. What it is not: the numbers (`retrieval/protocol.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from zscmr_ray.data.no_leak import RULE_COLUMNS, rule_table
from zscmr_ray.data.pairs import COLUMNS, PairFeatures, load_pair_features
from zscmr_ray.data.splits import ClassSplit
from zscmr_ray.engine.feeding import feed_of
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest
from zscmr_ray.models.base import AlignmentModel, SideOutput
from zscmr_ray.models.cross_scoring import join_pairs, keep_pairs
from zscmr_ray.progress import Progress
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.retrieval.searches import Corpus
from zscmr_ray.storage import Store

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PairsTable:
    """What the pairs say of every row, features left out."""

    ids: list[str]
    labels: list[tuple[str, ...]]
    partition_N: npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows that take part: N items, M captions; mean features are the baselines' input, [*, channels].

    `weights_NR` are the image side's region weights, None for a model without any. `pairs` is what a model that scores
    pairs needs of images and texts.
    """

    corpus: Corpus
    captions: list[str]
    image_ND: FloatArray
    text_MD: FloatArray
    weights_NR: FloatArray | None
    image_mean_NF: FloatArray
    text_mean_MF: FloatArray
    prior_logits_NC: FloatArray | None
    pairs: tuple[SideOutput, SideOutput] | None


def pair_parts(manifest: Manifest) -> list[str]:
    """Return the data parts of a finished preprocess, in order (rejected rows are parts of their own)."""
    return [part.name for part in manifest.parts if part.name.startswith("part-")]


def read_pairs_table(store: Store, manifest: Manifest, split: ClassSplit | None = None) -> PairsTable:
    """Read ids, labels and partitions of all pairs; labels as they count under the split."""
    has_rule = split is not None and split.rule == "dominant"
    columns = RULE_COLUMNS if has_rule else ("labels", "partition")
    tables = list(_tables(store, manifest, ("id", *columns), split))
    if not tables:
        raise DataError(
            "there are no pairs to evaluate", got=store.uri, remedy="run `zscmr preprocess` first"
        )
    table = pa.concat_tables(tables)
    return PairsTable(
        ids=table.column("id").to_pylist(),
        labels=[tuple(names) for names in table.column("labels").to_pylist()],
        partition_N=np.array(table.column("partition").to_pylist(), dtype="U5"),
    )


def choose_ids(pairs: PairsTable, groups: ClassGroups) -> tuple[set[str], int]:
    """Return the ids of train and test rows that take part, and how many rows do not for their classes.

    Without class groups every train and test row takes part. Raises DataError when no test or no train row is left.
    """
    kept_N = np.isin(pairs.partition_N, ("train", "test"))
    left_out = 0
    if groups.classes:
        in_group_N = groups.of_items(pairs.labels) != ""
        left_out = int((~in_group_N).sum())
        kept_N &= in_group_N
    if not (kept_N & (pairs.partition_N == "test")).any():
        counts = dict(zip(*np.unique(pairs.partition_N[kept_N], return_counts=True), strict=True))
        raise DataError(
            "there is no test row to ask with",
            got=f"rows that take part, by partition: { {str(name): int(count) for name, count in counts.items()} }",
            expected="rows with partition test whose classes are in the split",
            remedy="check data.columns.partition, or leave it out to split by the ids' hashes",
        )
    return {pairs.ids[row] for row in np.flatnonzero(kept_N)}, left_out


def encode_rows(
    store: Store,
    manifest: Manifest,
    model: AlignmentModel,
    *,
    ids: Collection[str],
    batch_rows: int,
    region_grid: int | None = None,
    split: ClassSplit | None = None,
) -> EncodedRows:
    """Encode the chosen rows with both sides of the model, part by part, without noise; `region_grid` is the model's."""
    shape, data = manifest.info, manifest.key.config.get("data", {})
    feed = feed_of(model, max_pixels=data.get("max_pixels", 0))
    wanted = pa.array(sorted(ids))
    parts = []
    with Progress("evaluate", total=len(ids), unit="rows") as progress:
        for table in _tables(store, manifest, feed.columns, split):
            features = feed.load(
                [table],
                num_regions=int(shape["num_regions"]),
                token_channels=int(shape["token_channels"]),
                keep=lambda rows: pc.is_in(rows.column("id"), value_set=wanted).to_numpy(
                    zero_copy_only=False
                ),
                region_grid=region_grid,
            )
            if len(features):
                parts.append(encode_features(features, model, batch_rows=batch_rows))
                progress.advance(len(features))
    return _join(parts)


def read_features(store: Store, manifest: Manifest, *, region_grid: int | None = None) -> PairFeatures:
    """Read all pairs' features into memory, in the order of the parts."""
    return load_pair_features(
        _tables(store, manifest, COLUMNS),
        num_regions=int(manifest.info["num_regions"]),
        token_channels=int(manifest.info["token_channels"]),
        region_grid=region_grid,
    )


def read_thumbnails(store: Store, manifest: Manifest, ids: Collection[str]) -> dict[str, bytes]:
    """Return the thumbnails of some items; items without one are left out."""
    wanted = pa.array(sorted(ids), pa.string())
    found: dict[str, bytes] = {}
    for table in _tables(store, manifest, ("id", "thumbnail")):
        chosen = table.filter(pc.is_in(table.column("id"), value_set=wanted))
        pictures = chosen.column("thumbnail").to_pylist()
        found |= {
            name: picture
            for name, picture in zip(chosen.column("id").to_pylist(), pictures, strict=True)
            if picture
        }
    return found


def _tables(
    store: Store, manifest: Manifest, columns: Sequence[str], split: ClassSplit | None = None
) -> Iterator[pa.Table]:
    for name in pair_parts(manifest):
        with store.open(name) as file:
            table = pq.read_table(file, columns=list(columns))
        yield table if split is None else rule_table(table, split)


def pooled_features(features: PairFeatures, *, batch_rows: int = 256) -> EncodedRows:
    """Return rows that are in memory without a model: the baselines' features, and vectors of no columns."""
    items = range(0, len(features), batch_rows)
    captions = range(0, features.num_captions, batch_rows)
    image_means = [
        features.regions_NRD[start : start + batch_rows].astype(np.float32).mean(1) for start in items
    ]
    text_means = [_text_means(features, start, batch_rows) for start in captions]
    return EncodedRows(
        corpus=_corpus(features),
        captions=[text for texts_of_item in features.captions for text in texts_of_item],
        image_ND=np.empty((len(features), 0), np.float32),
        text_MD=np.empty((features.num_captions, 0), np.float32),
        weights_NR=None,
        image_mean_NF=np.concatenate(image_means),
        text_mean_MF=np.concatenate(text_means),
        prior_logits_NC=_priors(features),
        pairs=None,
    )


@torch.inference_mode()
def encode_features(features: PairFeatures, model: AlignmentModel, *, batch_rows: int) -> EncodedRows:
    """Encode rows that are in memory; see `encode_rows`."""
    device = next(model.parameters()).device
    images, weights = [], []
    image_pairs, text_pairs = [], []
    for start in range(0, len(features), batch_rows):
        rows = np.arange(start, min(start + batch_rows, len(features)))
        output = model.encode_image(features.image_inputs(rows).to(device))
        images.append(model.vectors(output).cpu().numpy())
        if output.weights_BR is not None:
            weights.append(output.weights_BR.float().cpu().numpy())
        if model.scores_pairs:
            image_pairs.append(keep_pairs(output))
    texts = []
    for start in range(0, features.num_captions, batch_rows):
        places = np.arange(start, min(start + batch_rows, features.num_captions))
        tokens_BLD, lengths_B = features.padded_tokens(places)
        output = model.encode_text(tokens_BLD.to(device), lengths_B)
        texts.append(model.vectors(output).cpu().numpy())
        if model.scores_pairs:
            text_pairs.append(keep_pairs(output))
    return replace(
        pooled_features(features, batch_rows=batch_rows),
        image_ND=np.concatenate(images),
        text_MD=np.concatenate(texts),
        weights_NR=np.concatenate(weights) if weights else None,
        pairs=(join_pairs(image_pairs), join_pairs(text_pairs)) if model.scores_pairs else None,
    )


def _text_means(features: PairFeatures, start: int, batch_rows: int) -> FloatArray:
    """The mean of each caption's tokens, by sums between its first token and the next caption's."""
    starts_M1 = features.token_starts_M1[start : start + batch_rows + 1]
    values_TD = features.token_values_TD[starts_M1[0] : starts_M1[-1]].astype(np.float32)
    sums_BD = np.add.reduceat(values_TD, starts_M1[:-1] - starts_M1[0])
    means_BD = sums_BD / np.diff(starts_M1)[:, None]
    return means_BD.astype(np.float32)


def _corpus(features: PairFeatures) -> Corpus:
    return Corpus(features.ids, features.labels, features.partition, features.caption_item_M)


def _priors(features: PairFeatures) -> FloatArray | None:
    prior = features.prior_logits_NC
    return None if prior is None else prior[:].astype(np.float32)


def _join(parts: Sequence[EncodedRows]) -> EncodedRows:
    first_items = np.cumsum([0, *(len(part.corpus.ids) for part in parts)])
    weights = [part.weights_NR for part in parts if part.weights_NR is not None]
    pairs = [part.pairs for part in parts if part.pairs is not None]
    priors = [part.prior_logits_NC for part in parts if part.prior_logits_NC is not None]
    return EncodedRows(
        corpus=Corpus(
            ids=[name for part in parts for name in part.corpus.ids],
            labels=[names for part in parts for names in part.corpus.labels],
            partition_N=np.concatenate([part.corpus.partition_N for part in parts]),
            text_item_M=np.concatenate(
                [part.corpus.text_item_M + first for part, first in zip(parts, first_items, strict=False)]
            ),
        ),
        captions=[text for part in parts for text in part.captions],
        image_ND=np.concatenate([part.image_ND for part in parts]),
        text_MD=np.concatenate([part.text_MD for part in parts]),
        weights_NR=np.concatenate(weights) if weights else None,
        image_mean_NF=np.concatenate([part.image_mean_NF for part in parts]),
        text_mean_MF=np.concatenate([part.text_mean_MF for part in parts]),
        prior_logits_NC=np.concatenate(priors) if len(priors) == len(parts) and priors else None,
        pairs=(join_pairs([one for one, _ in pairs]), join_pairs([one for _, one in pairs]))
        if pairs
        else None,
    )
