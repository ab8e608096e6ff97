"""`zscmr preprocess`: raw shards to `pairs/` with cached features of the frozen backbones (DESIGN 2).

`encoder` runs the backbones, `run` is the stage. How shards are found and decoded is `stages/shards/`, how chunks flow
and parts are committed `stages/plane/`.
"""

from zscmr_ray.stages.preprocess.run import run_preprocess

__all__ = ["run_preprocess"]
