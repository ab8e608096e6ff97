"""`zscmr embed`: pairs or raw shards, and a model, to `embeddings/{image,text}/` (DESIGN 2).

`plan` decides model and rows, `source` reads pairs (raw shards: stages/shards), `encoder` runs the model, `run` is the
stage. How chunks flow and parts are committed is `stages/plane/`.
"""

from zscmr_ray.stages.embed.run import run_embed

__all__ = ["run_embed"]
