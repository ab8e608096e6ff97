"""`zscmr export`: a trained model with its card in one folder, to load from or to publish.

`run` writes the folder, `card` the README.md in it. Reading it back: `zscmr_ray.ZeroShotRetriever` (retriever.py).
"""

from zscmr_ray.stages.export.run import run_export

__all__ = ["run_export"]
