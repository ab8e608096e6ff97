"""`zscmr embed`: pairs and a checkpoint to `embeddings/{image,text}/` (DESIGN 2).

`source` reads pairs, `encoder` runs the alignment model over cached features, `run` is the stage. How chunks flow
and parts are committed is `stages/plane/`.
"""

from zscmr_ray.stages.embed.run import run_embed

__all__ = ["run_embed"]
