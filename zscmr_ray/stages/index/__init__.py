"""Embeddings to an index in segments: built, appended to, rows deleted from it, compacted.

record.py    what the manifest says of a segment, and the manifest
segment.py   one segment from its embedding parts, in this process or a Ray task
run.py       the stage: which segments there are to build, and an append
changes.py   deletions and compaction
opening.py   the files of a finished index, verified and mapped
"""

from zscmr_ray.stages.index.changes import compact_index, delete_rows
from zscmr_ray.stages.index.run import needs_ray, run_index

__all__ = ["compact_index", "delete_rows", "needs_ray", "run_index"]
