"""Encoders trained end to end, from pixels and captions to a report, vectors and exports; the tiny backbones, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.engine.rank_process import run_ranks
from tests.stages.inline_executor import inline_plane
from tests.tuned_run import tuned_config, weights_of, write_pairs
from zscmr_ray.config import Config
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.base import Engine
from zscmr_ray.engine.checkpoint import FILES, load_checkpoint, load_dual_encoder, read_meta
from zscmr_ray.engine.deepspeed import DeepSpeedEngine
from zscmr_ray.engine.step import AlignmentStep
from zscmr_ray.engine.trained import train_model
from zscmr_ray.errors import ConfigError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.models.tuned import TunedModel
from zscmr_ray.retriever import ZeroShotRetriever
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.export import run_export
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.train import plan_training, run_train
from zscmr_ray.stages.train_loop import TrainJob, read_features, train_worker
from zscmr_ray.stages.verify import verify_run
from zscmr_ray.storage import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        inline_plane.__wrapped__(patch)  # type: ignore[attr-defined]  the fixture is one test's, this corpus is the module's
        root = tmp_path_factory.mktemp("tuned")
        write_pairs(root)
    return root


def job_of(root: Path, name: str, **sections: dict[str, Any]) -> TrainJob:
    """A training of its own over the module's pairs."""
    data = {"pairs_uri": str(root / "run" / "pairs")} | sections.pop("data", {})
    config = tuned_config(root, name, data=data, **sections)
    pairs = stage_store(config, "preprocess")
    manifest = require_manifest(pairs, "preprocess")
    parts = tuple(part.name for part in manifest.parts if part.name.startswith("part-"))
    split, _ = plan_training(config, pairs, parts)
    return TrainJob(config, split, pairs, parts, manifest.info, stage_store(config, "train"))


def bare(job: TrainJob) -> Any:
    return lambda step, total: BareEngine(step, optim=job.config.optim, total_steps=total)


def train_bare(root: Path, name: str, **sections: dict[str, Any]) -> Config:
    job = job_of(root, name, **sections)
    train_worker(job, make_engine=bare(job))
    return job.config


def test_a_checkpoint_holds_the_trained_tensors_only_and_loads_as_served(root: Path) -> None:
    config = train_bare(root, "plain")
    store = stage_store(config, "train")
    model, meta = load_checkpoint(store)
    assert isinstance(model, TunedModel)
    names = {name for name in model.state_dict() if not name.startswith("aligned.")}
    assert names == {"image_encoder.backbone.layers.1.weight", "text_encoder.backbone.words.table"}
    assert meta.image_backbone.weights_sha256 != meta.image_backbone.untrained_sha256
    assert (meta.image_backbone.trained_blocks, meta.text_backbone.trained_blocks) == (1, 1)
    encoder, _ = load_dual_encoder(store)
    assert encoder.image_backbone is not None and encoder.text_backbone is not None
    assert encoder.image_backbone.weights_sha256 == meta.image_backbone.weights_sha256
    # By way of the feed, as training and evaluation go, and from pixels, as embed and the service go: the same vectors.
    features = read_features(job_of(root, "plain"))
    assert model.image_encoder is not None
    first = features.image_inputs([0, 1])
    assert first.shape[1:] == (16, 14, 14), "the states before the last convolution"
    with torch.inference_mode():
        fed = model.vectors(model.encode_image(first))
        tokens, lengths = features.padded_tokens([0, 1])
        fed_texts = model.vectors(model.encode_text(tokens, lengths))
    texts = [features.captions[0][0], features.captions[1][0]]
    torch.testing.assert_close(fed_texts, encoder.encode_texts(texts)[0], atol=2e-3, rtol=0)
    pixels = torch.from_numpy(features.image_feed._pixels(0))[None]  # type: ignore[attr-defined]
    torch.testing.assert_close(fed[:1], encoder.encode_images(pixels)[0], atol=2e-3, rtol=0)


def test_training_moves_the_encoders_at_their_own_rate(root: Path) -> None:
    trained = {}
    for name, rate in (("slow", 1e-9), ("fast", 1e-2)):
        optim = {"encoder_lr": rate, "max_epochs": 1}
        config = train_bare(root, name, optim=optim, model={"region_grid": 1})
        model, _ = load_checkpoint(stage_store(config, "train"))
        trained[name] = model.state_dict()["image_encoder.backbone.layers.1.weight"]
    fresh = TunedModel.load_encoders(model.encoders)[0]  # type: ignore[attr-defined]
    assert fresh is not None
    start = fresh.state_dict()["backbone.layers.1.weight"]
    assert (trained["slow"] - start).abs().max() < 1e-6
    assert (trained["fast"] - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    "train",
    [{"activation_cache_bytes": 0}, {"activation_checkpointing": True}],
    ids=["states made again", "activations made again"],
)
def test_memory_settings_change_no_bit(root: Path, train: dict[str, Any]) -> None:
    train_bare(root, "kept", optim={"max_epochs": 1})
    train_bare(root, "other", optim={"max_epochs": 1}, train=train)
    assert weights_of(str(root / "kept")) == weights_of(str(root / "other"))


class Killed(Exception):
    """Stands for SIGKILL: nothing catches it."""


def test_a_killed_training_ends_with_the_same_weights(root: Path) -> None:
    whole, killed = job_of(root, "whole"), job_of(root, "killed")
    train_worker(whole, make_engine=bare(whole))

    class Mortal(BareEngine):
        def update(self, inputs: Any) -> dict[str, float]:
            if inputs.step == 6:
                raise Killed
            return super().update(inputs)

    with pytest.raises(Killed):
        train_worker(
            killed,
            make_engine=lambda step, total: Mortal(step, optim=killed.config.optim, total_steps=total),
        )
    assert Store(killed.config.data.run_uri).child("checkpoint").exists("engine/step-00000004/complete.json")
    train_worker(killed, make_engine=bare(killed))
    assert weights_of(str(root / "whole")) == weights_of(str(root / "killed"))


CASES = ((0, False), (3, False), (3, True))


def curves(root: Path) -> list[list[float]]:
    """The losses of an epoch under DeepSpeed, in each case, on this rank."""
    return [losses(root, stage, recompute) for stage, recompute in CASES]


def losses(root: Path, zero_stage: int | None, recompute: bool = False) -> list[float]:
    found: list[float] = []
    train = {"zero_stage": zero_stage or 0, "activation_checkpointing": recompute}
    name = (
        f"rank{torch.distributed.get_rank() if torch.distributed.is_initialized() else 'less'}-{zero_stage}"
    )
    job = job_of(root, f"{name}-{recompute}", optim={"max_epochs": 1}, train=train)

    def engine(step: AlignmentStep, total: int) -> Engine:
        made: Engine = (
            BareEngine(step, optim=job.config.optim, total_steps=total)
            if zero_stage is None
            else DeepSpeedEngine(step, config=job.config, total_steps=total)
        )
        update = made.update

        def noted(inputs: Any) -> dict[str, float]:
            parts = update(inputs)
            found.append(parts["total"])
            return parts

        made.update = noted  # type: ignore[method-assign]
        return made

    train_worker(job, make_engine=engine)
    return found


@pytest.mark.long
def test_two_ranks_under_zero_follow_the_bare_loop(root: Path) -> None:
    expected = losses(root, None)
    assert len(expected) == 4
    for found in run_ranks(curves, 2, root):
        for case, curve in zip(CASES, found, strict=True):
            assert curve == pytest.approx(expected, abs=1e-4), case


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context", "ignore::ResourceWarning")
def test_two_ray_workers_in_micro_batches_train_it_and_embed_and_export_take_it(root: Path) -> None:
    """The bare loop's weights within 1e-4, and the vectors of the exported folder are those that embed wrote."""
    data = {"pairs_uri": str(root / "run" / "pairs")}
    train = {"num_workers": 2, "micro_batch_size": 1, "zero_stage": 2}
    config = tuned_config(root, "two", data=data, train=train)
    run_train(config)
    found, expected = (
        load_checkpoint(stage_store(one, "train"))[0].state_dict()
        for one in (config, train_bare(root, "one"))
    )
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-4, name
    assert run_embed(config).counts["out"] == 120
    run_export(config, Store(root / "exported"))
    check_vectors(config, ZeroShotRetriever.from_pretrained(root / "exported"))


@pytest.mark.usefixtures("inline_plane")
def test_everything_after_training_works_with_it(root: Path, tmp_path: Path) -> None:
    config = train_bare(root, "after", data={"pairs_uri": str(root / "run" / "pairs")})
    finish(config)
    result = run_evaluate(config)
    report = Store(result.directory).read_json("report.json")
    keys = {method["key"] for method in report["methods"]}
    assert {"both", "conse"} <= keys
    assert report["model"]["image_backbone"]["trained_on"].endswith(
        "then the last 1 of its blocks with this model"
    )
    embedded = run_embed(config)
    # The pairs' cached features are those of the frozen encoder: they may not be used.
    assert embedded.info["features"] == "computed"
    assert embedded.counts["out"] == 120
    run_index(config)
    assert [line for report in verify_run(config.data.run_uri) for line in report.violations] == []
    model = ZeroShotRetriever.from_pretrained(config.data.run_uri)
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == weights_of(config.data.run_uri)
    check_vectors(config, ZeroShotRetriever.from_pretrained(str(tmp_path / "copy")))


def check_vectors(config: Config, model: ZeroShotRetriever) -> None:
    """A picture of the pairs becomes the vector that embed wrote of it."""
    vectors = {row["id"]: row["vector"] for row in rows_of(stage_store(config, "embed").child("image"))}
    pair = rows_of(stage_store(config, "preprocess"))[0]
    np.testing.assert_allclose(model.encode_images([pair["image"]])[0], vectors[pair["id"]], atol=2e-3)


def rows_of(store: Store) -> list[dict[str, Any]]:
    """The rows of a directory's parts."""
    keys = sorted(info.key for info in store.list("") if info.key.startswith("part-"))
    return [row for key in keys for row in pq.read_table(store.path(key)).to_pylist()]


def finish(config: Config) -> None:
    """Give the checkpoint of `train_worker` the manifest of the stage."""
    from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest

    store = stage_store(config, "train")
    key = StageKey(stage="train", config={}, input_fingerprint="0")
    meta = read_meta(store)
    write_manifest(
        store,
        Manifest(
            key=key,
            config_hash=key.config_hash,
            counts={},
            parts=[part_record(store, name) for name in sorted(FILES)],
            info={"fingerprint": meta.fingerprint},
        ),
    )


@pytest.mark.usefixtures("inline_plane")
def test_pairs_without_pictures_are_refused_and_thumbnails_never_used(tmp_path: Path) -> None:
    config = write_pairs(tmp_path, preprocess={"keep_images": False})
    with pytest.raises(ConfigError, match="made with preprocess"):
        run_train(config)


def test_what_cannot_train_an_encoder_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="fitted in closed form"):
        train_bare(root, "fitted", model={"method": "best"})
    with pytest.raises(ConfigError, match='1 to 2, or "all"'):
        train_bare(root, "deep", model={"image_blocks": 7})
    cached = job_of(root, "ablated", model={"image_blocks": 0, "text_blocks": 0})
    job = job_of(root, "ablated")
    with pytest.raises(ConfigError, match="an ablation trains from cached features"):
        train_model(
            job.config,
            job.split,
            read_features(cached),
            info=job.info,
            store=job.checkpoint,
            make_engine=bare(job),
        )
