"""The sections an operator sets in `ray_config.yaml`: where things are, how wide they run, what is read and served."""

from __future__ import annotations

import os
from typing import Literal

from zscmr_ray.config.base import Section, nested, setting

OWN_CHECKPOINT = "checkpoint"
"""`embed.model` of a run that embeds with what it trained."""


class RaySection(Section):
    """Which Ray cluster to use."""

    address: str | None = setting(
        None, "place", "Ray address (`auto`, `host:port`, `ray://...`); none starts Ray on this machine"
    )
    num_cpus: int | None = setting(
        None, "speed", "logical CPUs of a Ray started here; none = all cores", ge=1
    )
    autoscales: bool = setting(
        False,
        "speed",
        "the cluster adds nodes while work waits: encoders and training workers are not limited to what it has now",
    )
    namespace: str | None = setting(
        None, "place", "Ray namespace of a command's actors; none = one of its own, so that no two jobs meet"
    )
    dashboard_port: int | None = setting(
        None, "place", "dashboard port (loopback) of a Ray started here; none = no dashboard", ge=1, le=65535
    )
    object_store_bytes: int | None = setting(
        None,
        "speed",
        "object store size of a Ray started here, in bytes; none = Ray's own choice",
        ge=80_000_000,
    )
    temp_dir: str | None = setting(
        None, "place", "folder for the sessions of a Ray started here; none = Ray's own"
    )

    @property
    def cluster_address(self) -> str | None:
        """The cluster to join: the setting's, or that of RAY_ADDRESS; None where Ray is started on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None


class ColumnsSection(Section):
    """Which column or JSON field holds what; none = found by its usual names."""

    id: str | None = setting(None, "output", "column of the item id; none = `<shard key>#<key>`")
    image: str | None = setting(
        None, "output", "column of the image bytes, or of its path relative to the manifest"
    )
    caption: str | None = setting(None, "output", "column of the caption, or of a list of captions")
    label: str | None = setting(
        None, "output", "column of the class, or of a list of classes; `-` = read no labels"
    )
    partition: str | None = setting(None, "output", "column of train/val/test; none = by the id's hash")


class DataSection(Section):
    """What is read and where results go."""

    input_uri: str = setting("", "place", "folder, file or glob of image-text shards (local or s3://)")
    run_uri: str = setting(
        "runs/default", "place", "folder of this run's stages: pairs/ checkpoint/ report/ ..."
    )
    pairs_uri: str | None = setting(
        None, "place", "pairs/ of another run, for several trainings on the same pairs; none = this run's"
    )
    format: Literal[
        "auto",
        "webdataset",
        "parquet",
        "jsonl",
        "csv",
        "folder",
        "class_folder",
        "wikipedia",
        "wikipedia_features",
        "pascal_sentence",
        "xmedia",
        "nuswide",
        "nuswide10k",
        "coco",
        "karpathy",
        "flickr",
    ] = setting(
        "auto",
        "output",
        "shard format; auto = by file extension; from wikipedia on: a dataset's own layout (docs/datasets.md)",
    )
    modality: Literal["pairs", "image", "text"] = setting(
        "pairs",
        "output",
        "what a row must have: an image and a caption; an image (captions are not read); a caption (images are not read)",
    )
    columns: ColumnsSection = nested(ColumnsSection, "column mapping")
    caption_classes: Literal["none", "coco"] = setting(
        "none",
        "output",
        "coco = an item's classes are those of COCO that two of its captions name or more, the most often named first "
        "(Flickr has no classes); labels of the input are not read",
    )
    label_separator: str | None = setting(
        None, "output", "splits one label string into several classes; none = never"
    )
    max_items_per_class: int | None = setting(
        None, "output", "keep at most this many items of a class, those with the smallest sha256(id)", ge=1
    )
    mask_class_words: bool = setting(
        False, "output", "remove the words of an item's own classes from its captions"
    )
    max_pixels: int = setting(
        64_000_000, "output", "larger images are rejected before decoding, in pixels", ge=1
    )
    scaled_jpeg: bool = setting(
        False,
        "output",
        "decode a JPEG of twice the needed size and more at 1/2, 1/4 or 1/8: sooner, other pixels (docs/embed.md)",
    )
    max_caption_chars: int = setting(4096, "output", "longer captions are cut here, in characters", ge=1)
    max_captions: int = setting(32, "output", "captions kept per item, the first ones", ge=1)


class SplitSection(Section):
    """Which classes are seen in training (part of train's hash, not of preprocess's)."""

    kind: Literal["even_odd", "ratio", "random", "explicit", "coco_48_17", "coco_65_15", "none"] = setting(
        "even_odd",
        "output",
        "class split: class c (0-based) unseen iff even; every n-th; random by seed; by name; the published ones of COCO; "
        "none",
    )
    rule: Literal["auto", "all_labels", "dominant"] = setting(
        "auto",
        "output",
        "what an item of several classes is: all_labels = of a group when all its classes are; dominant = of its first "
        "class, and trained on only if it shows no unseen class and no caption names one; auto = dominant for the splits "
        "of COCO, else all_labels",
    )
    unseen_fraction: float = setting(0.5, "output", "share of the classes that is unseen", gt=0, lt=1)
    seed: int = setting(
        0, "output", "seed of a random split and of the choice of pseudo-unseen classes", ge=0
    )
    pseudo_unseen_fraction: float = setting(
        0.2, "output", "share of the seen classes held out for early stopping and selection", ge=0, lt=1
    )
    min_items_per_class: int = setting(
        10, "output", "smaller classes are dropped (counted in the split file)", ge=1
    )
    unseen_classes: tuple[str, ...] = setting((), "output", "the unseen classes of an explicit split")
    class_order: tuple[str, ...] = setting(
        (), "output", "class order for even_odd and ratio; empty = sorted names"
    )


class PlaneSection(Section):
    """What preprocess and embed share: chunks, encoder actors and their share of the machine."""

    chunk_rows: int = setting(64, "output", "rows encoded together; cut inside a shard", ge=1, le=256)
    encoder_threads: int = setting(
        1, "output", "torch threads of one encoder actor (results depend on it)", ge=1
    )
    num_encoders: int | None = setting(
        None, "speed", "encoder actors; none = fitted to the cluster's CPUs or GPUs", ge=1
    )
    encoder_gpus: float = setting(0.0, "speed", "GPUs of one encoder actor; 0 = on CPU", ge=0)
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "output", "arithmetic of the backbones; bf16 where processor or GPU has it (docs/embed.md)"
    )
    compile: bool = setting(
        False, "output", "backbones compiled by torch.compile when an encoder starts: a minute, for GPUs"
    )
    decode_cpus: float = setting(0.5, "speed", "logical CPUs of one decode task", gt=0)
    steps: Literal["auto", "apart", "together"] = setting(
        "auto", "speed", "decode and encode in processes of their own, or in one; auto = by CPUs and shards"
    )
    max_shard_failures: int = setting(
        3, "speed", "attempts at a shard that crashes its worker before it is failed", ge=1
    )


class PreprocessSection(PlaneSection):
    """How raw shards become pairs with cached features."""

    image_backbone: str = setting(
        "efficientnet-lite0", "output", "efficientnet-lite0, tiny, or hf:<id or folder>"
    )
    text_backbone: str = setting(
        "minilm", "output", "minilm, tiny, hf:<id or folder>, words:<file>, static:<text backbone>"
    )
    teacher: Literal["image_backbone", "none"] = setting(
        "image_backbone", "output", "whose class logits are FGLA's prior; none = no label distribution"
    )
    region_grid: int = setting(
        7, "output", "side of the cached feature map: 7 (125 KB an item at 1280-d) or 4 (41 KB)", ge=1
    )
    max_tokens: int = setting(64, "output", "text tokens kept per caption", ge=2, le=512)
    thumbnail_px: int = setting(256, "output", "longest side of the kept thumbnail, in pixels", ge=16, le=512)
    keep_images: bool = setting(False, "output", "also keep the original image bytes")


class EvaluateSection(Section):
    """What is reported."""

    label_weight: float | None = setting(
        None,
        "output",
        "weight l of label distributions in the fused score; none = the one training selected",
        ge=0,
        le=1,
    )
    bootstrap_resamples: int = setting(1000, "output", "class-then-query resamples of each interval", ge=100)
    seed: int = setting(0, "output", "seed of the resampling", ge=0)
    num_gallery_queries: int = setting(
        12, "output", "example queries with pictures per direction in the report", ge=0
    )
    batch_rows: int = setting(256, "output", "rows encoded together", ge=1)
    embeddings: tuple[str, ...] = setting((), "place", "embeddings to score as well, each `<name>=<run>`")
    rerank_top_k: int = setting(
        100, "output", "IMFA: the best by vector that the fused attention re-ranks", ge=1
    )
    max_exact_pairs: int = setting(
        50_000_000, "output", "IMFA: more pairs than this are not scored (5 to 20 us a pair and core)", ge=0
    )


class EmbedSection(PlaneSection):
    """Which model makes vectors, of what, and what is written per item."""

    model: str = setting(
        OWN_CHECKPOINT,
        "place",
        "`checkpoint` (this run's), the folder or URI of another run or checkpoint, or `hf:<id or folder>` of a dual "
        "encoder (CLIP, SigLIP ...)",
    )
    source: Literal["auto", "pairs", "shards"] = setting(
        "auto",
        "place",
        "what is embedded: the run's pairs/, or data.input_uri directly; auto = pairs when the run has them",
    )
    thumbnails: bool = setting(True, "output", "keep the thumbnail beside the image vector")
    region_weights: bool = setting(True, "output", "keep the weight of every image region (heat maps)")
    regions: bool = setting(False, "output", "IMFA: keep regions for re-ranking (50 KB an item at 49 x 512)")


class IndexSection(Section):
    """How vectors are searched."""

    kind: Literal["auto", "flat", "ivf"] = setting(
        "auto",
        "output",
        "flat = exact inner product; ivf = inverted lists, candidates re-scored exactly; auto = flat within the bounds "
        "below, else ivf",
    )
    quantizer: Literal["auto", "none", "sq8", "pq"] = setting(
        "auto",
        "output",
        "ivf: vectors in the lists as floats, a byte a column, or a byte for four columns; auto = sq8, or pq where sq8 "
        "exceeds the memory",
    )
    max_memory_bytes: int = setting(
        4 << 30, "output", "auto: memory of one side of a segment in a replica, in bytes", ge=1 << 20
    )
    max_latency_ms: float = setting(
        50.0, "output", "auto: expected time of one query alone in one side of a segment, in ms", gt=0
    )
    target_recall: float = setting(
        0.97,
        "output",
        "ivf: recall@10 that the number of lists read is tuned for, per query direction",
        gt=0,
        le=1,
    )
    min_recall: float = setting(
        0.95, "output", "an index whose recall@10 is lower in any direction is refused", ge=0, le=1
    )
    shard_rows: int = setting(
        4_000_000,
        "output",
        "rows of one segment, images and texts; more are built as Ray tasks, one a segment",
        ge=1,
    )
