"""`zscmr preprocess`: raw shards to `pairs/` with cached features of the frozen backbones (DESIGN 2).

`inputs` finds shards, `source` decodes them (no torch), `cap` bounds classes, `encoder` runs the backbones, `run` is
the stage. How chunks flow and parts are committed is `stages/plane/`.
"""

from zscmr_ray.stages.preprocess.run import run_preprocess

__all__ = ["run_preprocess"]
