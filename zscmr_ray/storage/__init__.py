"""Local paths and `s3://` behind one small vocabulary: `Store`.

`store` is that vocabulary, `local` and `s3` are the two places it can mean, `requests` is one S3 request and what its
failures mean, `retry` is how often and how long an operation is tried. Only `requests` imports s3fs.
"""

from zscmr_ray.storage.place import FileInfo
from zscmr_ray.storage.store import Store

__all__ = ["FileInfo", "Store"]
