"""How a training's worker is fed changes no bit of what it trains; no Ray here."""

from __future__ import annotations

from pathlib import Path

from tests.pairs_run import tiny_config, write_pairs
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.stages.train import plan_training
from zscmr_ray.stages.train_loop import TrainJob, train_worker
from zscmr_ray.storage import Store


def test_features_in_a_file_and_no_prefetching_change_no_bit(tmp_path: Path) -> None:
    whole = tiny_config(tmp_path)
    info = write_pairs(whole).info
    pairs, parts = (
        Store(tmp_path / "pairs"),
        tuple(sorted(path.name for path in (tmp_path / "pairs").glob("part-*"))),
    )
    split, _ = plan_training(whole, pairs, parts)
    found = []
    for number, train in enumerate(({}, {"feature_memory_bytes": 0, "prefetch_steps": 0})):
        config = tiny_config(tmp_path, train=train)
        store = Store(tmp_path / str(number))
        train_worker(
            TrainJob(config, split, pairs, parts, info, store),
            make_engine=lambda step, total: BareEngine(step, optim=whole.optim, total_steps=total),
        )
        found.append(store.read_bytes("model.safetensors"))
    assert found[0] == found[1]
