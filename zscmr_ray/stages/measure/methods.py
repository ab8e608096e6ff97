"""The rows of a table that a trained model has itself: regions, labels, both; for IMFA also the scores of pairs.

What it is: names and towers in the order in which they are reported. What it is not: the numbers (`retrieval/protocol.py`)
or the training-free rows beside them (`baselines.py`).
"""

from __future__ import annotations

from zscmr_ray.config import EvaluateSection
from zscmr_ray.engine.checkpoint import CheckpointMeta
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.retrieval.searches import variants
from zscmr_ray.stages.measure.baselines import Baseline
from zscmr_ray.stages.measure.facts import method_name, variant_name
from zscmr_ray.stages.measure.pair_rows import pair_rows
from zscmr_ray.stages.measure.rows import EncodedRows


def used_label_weight(meta: CheckpointMeta, section: EvaluateSection) -> float:
    """Return the label weight of the fused score: the configuration's, else the one that training selected."""
    return meta.label_weight if section.label_weight is None else section.label_weight


def model_rows(
    model: AlignmentModel, meta: CheckpointMeta, rows: EncodedRows, section: EvaluateSection
) -> list[Baseline]:
    """Return the model's own rows: those by vector, then those by pairs (or why they were not run)."""
    ours = variants(rows.image_ND, rows.text_MD, model.blocks, label_weight=used_label_weight(meta, section))
    name = method_name(meta)
    by_vector = [Baseline(key, f"{name}, {variant_name(meta, key)}", towers) for key, towers in ours.items()]
    return by_vector + pair_rows(model, rows, ours, name=name, section=section)
