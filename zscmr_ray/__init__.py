"""zscmr_ray: zero-shot cross-modal retrieval on Ray."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`zscmr_ray.ZeroShotRetriever`, imported when it is first asked for: torch costs seconds that most uses save."""
    if name == "ZeroShotRetriever":
        return importlib.import_module("zscmr_ray.retriever").ZeroShotRetriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
