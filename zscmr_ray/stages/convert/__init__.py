"""`zscmr convert`: embeddings to the clip-retrieval layout and back, part by part.

`layout` is that layout on disk, `rows` lines image and text rows up, `exporting` writes it, `importing` reads it, and
`foreign` says whose vectors they are. One process, memory of a batch of rows; the manifest comes last as everywhere.
"""

from zscmr_ray.stages.convert.exporting import export_clip_retrieval
from zscmr_ray.stages.convert.importing import import_clip_retrieval

__all__ = ["export_clip_retrieval", "import_clip_retrieval"]
