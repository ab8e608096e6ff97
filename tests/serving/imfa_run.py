"""A small run of IMFA from raw shards to an index that keeps projected regions, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.inline_executor import InlineExecutor
from tests.stages.small_run import small_imfa, write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.recipes import vary
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.plane import on_ray

NUM_ITEMS = 24


def imfa_run(root: Path, *, regions: bool = True, **sections: dict[str, Any]) -> Config:
    """Embed and index two shards with an untrained checkpoint; `regions` = keep what re-ranking reads."""
    for number, key in enumerate(("b.tar", "a.tar")):
        write_tar(root / "shards" / key, good_samples(number, NUM_ITEMS // 2))
    config = corpus_config(root, embed={"regions": regions, "source": "shards"}, **sections)
    write_checkpoint(config, model=small_imfa(), label_weight=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        run_embed(config)
    run_index(config)
    return vary(config, recipe="fgan")
