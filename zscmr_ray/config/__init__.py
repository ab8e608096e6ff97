"""The configuration: one frozen tree, `default < recipe < YAML < --set` (DESIGN 4).

`Config` is what every stage takes. `load_config` builds one and remembers where each value came from.
"""

from __future__ import annotations

from typing import Any

from zscmr_ray.config.base import Section, nested, setting
from zscmr_ray.config.operator import (
    ColumnsSection,
    DataSection,
    EmbedSection,
    EvaluateSection,
    IndexSection,
    PlaneSection,
    PreprocessSection,
    RaySection,
    SplitSection,
)
from zscmr_ray.config.research import LossSection, ModelSection, OptimSection
from zscmr_ray.config.serving import ServeSection
from zscmr_ray.config.training import TrainSection

__all__ = [
    "OPERATOR_SECTIONS",
    "RESEARCH_SECTIONS",
    "ColumnsSection",
    "Config",
    "DataSection",
    "EmbedSection",
    "EvaluateSection",
    "IndexSection",
    "LossSection",
    "ModelSection",
    "OptimSection",
    "PlaneSection",
    "PreprocessSection",
    "RaySection",
    "Section",
    "ServeSection",
    "SplitSection",
    "TrainSection",
]

OPERATOR_SECTIONS = ("ray", "data", "split", "preprocess", "train", "evaluate", "embed", "index", "serve")
RESEARCH_SECTIONS = ("model", "loss", "optim")


class Config(Section):
    """The whole configuration. Derived numbers are properties; nothing here is changed after it was built."""

    recipe: str = setting("fgan", "place", "name of the recipe this configuration started from")
    ray: RaySection = nested(RaySection, "which Ray cluster")
    data: DataSection = nested(DataSection, "what is read and where results go")
    split: SplitSection = nested(SplitSection, "seen and unseen classes")
    preprocess: PreprocessSection = nested(PreprocessSection, "raw shards to pairs with cached features")
    model: ModelSection = nested(ModelSection, "the alignment network")
    loss: LossSection = nested(LossSection, "FGCL and FGLA")
    optim: OptimSection = nested(OptimSection, "optimiser and schedule")
    train: TrainSection = nested(TrainSection, "how training runs")
    evaluate: EvaluateSection = nested(EvaluateSection, "what is reported")
    embed: EmbedSection = nested(EmbedSection, "what is written per item")
    index: IndexSection = nested(IndexSection, "how vectors are searched")
    serve: ServeSection = nested(ServeSection, "the HTTP service")

    def stage_config(self, *sections: str) -> dict[str, Any]:
        """The output-affecting values of some sections: what a stage's config hash covers."""
        return {name: getattr(self, name).output_fields() for name in sections}
