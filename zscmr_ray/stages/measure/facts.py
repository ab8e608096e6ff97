"""What the report says besides numbers: the model, its backbones and teacher, the classes, and what was selected how.

"Unseen" means unseen by the alignment network; so every report names what the backbones and the teacher were trained
on and counts the classes whose name is among the teacher's (SCIENCE 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from zscmr_ray.data.splits import ClassSplit
from zscmr_ray.engine.checkpoint import BackboneRecord, CheckpointMeta
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.stages.measure.baselines import shared_names
from zscmr_ray.stages.measure.rows import EncodedRows


def class_groups(meta: CheckpointMeta) -> ClassGroups:
    """Return the classes trained on, unseen and held out, from the checkpoint's own split."""
    split = class_split(meta)
    if split is None:
        return ClassGroups((), ())
    return split_groups(split, refit=bool(meta.config["train"]["refit"]))


def split_groups(split: ClassSplit, *, refit: bool) -> ClassGroups:
    """Return the groups of a split after a training with or without refit."""
    seen = split.trained(refit=refit)
    return ClassGroups(
        seen=seen,
        unseen=split.unseen,
        held_out=tuple(name for name in split.pseudo_unseen if name not in frozenset(seen)),
    )


def class_split(meta: CheckpointMeta) -> ClassSplit | None:
    """Return the checkpoint's class split, or None when it was trained without classes."""
    if meta.split is None or not (meta.split["seen"] or meta.split["unseen"]):
        return None
    lists = {name: tuple(meta.split[name]) for name in ("seen", "pseudo_unseen", "unseen", "dropped")}
    return ClassSplit(**{**meta.split, **lists})


def describe_model(meta: CheckpointMeta) -> dict[str, Any]:
    """Return what the report says of the checkpoint."""
    return {
        "method": meta.method,
        "method_name": method_name(meta),
        "recipe": meta.recipe,
        "fingerprint": meta.fingerprint,
        "image_backbone": _backbone(meta.image_backbone),
        "text_backbone": _backbone(meta.text_backbone),
        "teacher": meta.teacher,
        "teacher_name": teacher_name(meta),
    }


def method_name(meta: CheckpointMeta) -> str:
    """Return the method as its literature calls it."""
    architecture = meta.architecture
    match meta.method:
        case "inn":
            names = {"mean": "ZS_INN", "self": "ZS_INN_SELF", "fused": "IMFA (ZS_INN_FUSE)"}
            return names[str(architecture["attention"])]
        case "tower":
            contrast = "hinge" if architecture["contrast"] == "hinge" else "InfoNCE"
            return "SupCon towers" if architecture["same_class"] == "positive" else f"{contrast} towers"
        case other:
            return other.upper()


def variant_name(meta: CheckpointMeta, variant: str) -> str:
    """Return in words which of the model's scores a row is."""
    if len(meta.blocks) > 1 or meta.method == "fgan":
        return {"regions": "regions", "labels": "label distributions", "both": "both (fused)"}[variant]
    if meta.architecture.get("attention") == "fused":
        return "distilled vector" if meta.architecture["distill_weight"] > 0 else "mean vector"
    return "by vector"


def teacher_name(meta: CheckpointMeta) -> str:
    """Return the teacher in words."""
    if meta.teacher is None:
        return "none (no label distributions)"
    trained_on = meta.image_backbone.trained_on
    name = str(meta.teacher.get("id", meta.image_backbone.id))
    return f"{name}, trained on {trained_on}" if trained_on else name


def describe_data(
    rows: EncodedRows,
    groups: ClassGroups,
    meta: CheckpointMeta,
    *,
    num_without_group: int,
    teacher_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the counts of items, captions and classes, and the classes the teacher knows by name."""
    split = class_split(meta)
    known = {
        name: shared_names(classes, teacher_names or ())
        for name, classes in (("seen", groups.seen), ("unseen", groups.unseen))
    }
    partitions = Counter(rows.corpus.partition_N.tolist())
    return {
        "num_items": len(rows.corpus.ids),
        "num_captions": len(rows.captions),
        "partitions": {name: partitions[name] for name in ("train", "test")},
        "num_without_group": num_without_group,
        "classes": {
            "seen": len(groups.seen),
            "held_out": len(groups.held_out),
            "unseen": len(groups.unseen),
            "dropped": len(split.dropped) if split else 0,
        },
        "classes_named_in_teacher": known,
        "teacher_overlap_note": overlap_note(groups, known, knows_names=teacher_names is not None),
    }


def overlap_note(groups: ClassGroups, known: dict[str, list[str]], *, knows_names: bool) -> str:
    """Return the sentence on classes that the teacher was trained with under the same name.

    >>> overlap_note(ClassGroups(("a",), ("b", "c")), {"seen": [], "unseen": ["c"]}, knows_names=True)
    'Of the unseen classes, 1 of 2 carry the name of a teacher class (c); of the classes trained on, 0 of 1.'
    """
    if not groups.classes:
        return "There are no classes to compare with the teacher's."
    if not knows_names:
        return "The teacher's classes have no names here, so they could not be compared."
    named = f" ({', '.join(known['unseen'])})" if known["unseen"] else ""
    return (
        f"Of the unseen classes, {len(known['unseen'])} of {len(groups.unseen)} carry the name of a teacher "
        f"class{named}; of the classes trained on, {len(known['seen'])} of {len(groups.seen)}."
    )


def selection_note(meta: CheckpointMeta) -> str:
    """Return how steps and score settings were chosen, in one sentence."""
    chosen = meta.selection
    where = {"pseudo-unseen": "pseudo-unseen classes", "val": "the validation partition"}
    rows = where.get(str(chosen.get("rows")), str(chosen.get("rows", "nothing")))
    score = chosen.get("score")
    told = f": average mAP {score:.3f}, chance {chosen['chance']:.3f}" if isinstance(score, float) else ""
    candidates = len(chosen.get("table", ()))
    return (
        f"{chosen.get('steps', 0)} training steps, label weight {meta.label_weight} and temperature "
        f"{meta.label_temperature}, chosen on {rows} among {candidates} candidates{told}. "
        "Unseen classes had no part in it."
    )


def notes(groups: ClassGroups) -> list[str]:
    """Return what a reader must know before the tables."""
    if not groups.classes:
        return ["The corpus was trained without classes: retrieval by instance only."]
    if not groups.unseen:
        return ["No class is unseen in this split: nothing here is zero-shot."]
    return []


def _backbone(record: BackboneRecord) -> dict[str, Any]:
    return {"id": record.id, "weights_sha256": record.weights_sha256, "trained_on": record.trained_on}
