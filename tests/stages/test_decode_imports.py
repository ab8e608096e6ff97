"""Decode workers must not pay for torch: its import costs seconds of every worker's start."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["shards.source", "embed.source", "plane.decode", "plane.commit"])
def test_decode_and_commit_import_no_torch(module: str) -> None:
    code = (
        f"import sys, zscmr_ray.stages.{module}\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'faiss', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
