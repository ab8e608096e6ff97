"""Versions of methods whose equations changed after numbers of them were written down; every other method is at 1.

A version is in the key of an ablation's trial and of a training's directory, and in a checkpoint's architecture, so that
what an older version left is neither taken for done nor read as what it is not. Version 1 is written nowhere. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zscmr_ray.errors import RefusedError

VERSION = "method_version"
METHOD_VERSIONS: dict[str, int] = {"best": 5}
"""Raised by 1 with every change of a method after which the same rows give other vectors (docs/science.md)."""


def version_facts(method: str) -> dict[str, int]:
    """Return what a key says of a method's version: nothing of version 1.

    >>> version_facts("fgan")
    {}
    """
    version = METHOD_VERSIONS.get(method, 1)
    return {VERSION: version} if version > 1 else {}


def check_version(architecture: Mapping[str, Any]) -> None:
    """Refuse a model of another version than this code's; of a method that is not known nothing is said."""
    method = str(architecture.get("method"))
    found, expected = architecture.get(VERSION, 1), METHOD_VERSIONS.get(method, 1)
    if found != expected:
        raise RefusedError(
            f"the model is of another version of method {method}",
            got=f"version {found}" if VERSION in architecture else "a version before they were written down",
            expected=f"version {expected}",
            remedy="train again with --overwrite, or use the code that trained it",
        )
