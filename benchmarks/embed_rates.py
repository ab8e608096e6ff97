"""What the embed benchmarks share: an untrained model, our stage, bare processes and the plain Ray Data pipeline.

All embed images alone, without thumbnails unless said. Rates are of the steady state: the first 20% of the rows are
dropped, and a pipeline ends when its last row is on disk. The plain pipeline has what Ray's documentation of batch
inference has: `read_images`, a Hugging Face image processor and a model in `map_batches`, `write_parquet`; it gets our
model, our process environment, and is spared the processor's normalisation (the model's own is faster).
"""

from __future__ import annotations

import io
import json
import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from corpus import Arrivals, read_pictures, steady_rate

from zscmr_ray.config import Config
from zscmr_ray.recipes import vary
from zscmr_ray.stages.plane.chunks import ChunkResult
from zscmr_ray.storage import Store

MAX_PIXELS = 64_000_000
_SIZE_PX, _CROP_FRACTION = 224, 0.875
_REPORT_ROWS = 64
ENCODED_CHUNKS = 12


def embed_config(folder: Path, *, model: Path, thumbnails: bool = False) -> Config:
    """Images of `folder/shards` with the model, into a run named after the setting."""
    run = folder / ("run-with-thumbnails" if thumbnails else "run")
    return vary(
        Config(),
        recipe="fgan",
        data={"input_uri": str(folder / "shards"), "run_uri": str(run), "modality": "image"},
        embed={"model": str(model), "source": "shards", "thumbnails": thumbnails},
    )


def write_untrained(run: Path, backbone: str, *, width: int) -> None:
    """A run with a checkpoint of initial weights over the image backbone: as fast as a trained one."""
    import torch

    from zscmr_ray.engine.checkpoint import BackboneRecord, BlockRecord, CheckpointMeta, save_checkpoint
    from zscmr_ray.manifest import Manifest, StageKey, write_manifest
    from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
    from zscmr_ray.models.fgan import FganSettings, build_fgan

    image, text = load_image_backbone(backbone), load_text_backbone("tiny")
    settings = FganSettings(
        image.num_channels,
        text.num_channels,
        num_classes=image.num_classes or 0,
        width=width,
        num_heads=max(1, width // 128),
        latent=width,
    )
    torch.manual_seed(0)
    model = build_fgan(settings, seed=0)
    records = {
        f"{side}_backbone": BackboneRecord(
            id=name, weights_sha256=found.weights_sha256, num_channels=found.num_channels
        )
        for side, name, found in (("image", backbone, image), ("text", "tiny", text))
    }
    store = Store(run).child("checkpoint")
    signed = save_checkpoint(
        store,
        model,
        CheckpointMeta(
            architecture=model.architecture(),
            blocks=tuple(BlockRecord(name=b.name, start=b.start, stop=b.stop) for b in model.blocks),
            label_temperature=1.0,
            label_weight=0.4,
            image_backbone=records["image_backbone"],
            text_backbone=records["text_backbone"],
            teacher={"id": backbone},
            preprocessing=json.loads(json.dumps(asdict(image.spec))),
            region_grid=image.native_grid,
            max_tokens=16,
            selection={},
            recipe="fgan",
            config={},
            split=None,
        ),
    )
    key = StageKey(stage="train", config={}, input_fingerprint=signed.fingerprint)
    write_manifest(store, Manifest(key=key, config_hash=key.config_hash))


def run_anew(config: Config, *, num_rows: int, arrived: Callable[[float, int | None], None]) -> None:
    """Run the embed stage from an empty directory, on a Ray of its own.

    `arrived` is told the time and number of rows whenever some arrive, and at the end the time and None.
    """
    from zscmr_ray.cli.session import ray_session
    from zscmr_ray.stages.embed.plan import plan_embed
    from zscmr_ray.stages.embed.run import embed_job
    from zscmr_ray.stages.plane.run import run_plane

    def observe(result: ChunkResult) -> None:
        arrived(time.monotonic(), result.num_in)

    Store(config.data.run_uri).delete_tree("embeddings")
    with ray_session(config.ray):
        commits = run_plane(replace(embed_job(config, plan_embed(config)), observe=observe))
        arrived(time.monotonic(), None)
    assert sum(commit.counts["out"] for commit in commits) == num_rows


# -- bare processes ---------------------------------------------------------------------------------------


def run_bare(worker: Callable[..., None], shares: list[Any], *, num_rows: int, **options: Any) -> float:
    """Images/s of one process per share, each putting (time, rows) on a queue."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    workers = [
        context.Process(target=worker, args=(share, results), kwargs=options, daemon=True) for share in shares
    ]
    for process in workers:
        process.start()
    arrivals: Arrivals = []
    while sum(rows for _, rows in arrivals) < num_rows:
        arrivals.append(results.get())
    for process in workers:
        process.join()
    return steady_rate(arrivals, max(at_s for at_s, _ in arrivals))


def bare_decoding(shards: list[Path], results: Any, *, decode: Callable[[bytes], Any]) -> None:
    """Every picture of the shards to the model's pixels, and nothing else (the monotonic clock is the machine's)."""
    for shard in shards:
        for number, data in enumerate(read_pictures(shard), 1):
            decode(data)
            if number % _REPORT_ROWS == 0:
                results.put((time.monotonic(), _REPORT_ROWS))


def decode_by_pillow(data: bytes) -> Any:
    """What a loop over pictures usually does, at its fastest: Pillow, and only the crop resized."""
    from PIL import Image

    from zscmr_ray.data.decode import crop_box

    image: Image.Image = Image.open(io.BytesIO(data))
    image = image if image.mode == "RGB" else image.convert("RGB")
    box = crop_box(*image.size, size_px=_SIZE_PX, crop_fraction=_CROP_FRACTION)
    return np.asarray(image.resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BICUBIC, box=box))


def decode_as_we_do(data: bytes, *, thumbnail_px: int | None = None) -> Any:
    """The project's own decoding."""
    from zscmr_ray.data.decode import decode_image

    return decode_image(
        data, size_px=_SIZE_PX, crop_fraction=_CROP_FRACTION, interpolation="bicubic",
        max_pixels=MAX_PIXELS, thumbnail_px=thumbnail_px,
    )  # fmt: skip


def bare_embedding(shards: list[Path], results: Any, *, config: Config, threads: int) -> None:
    """Decode ahead in a thread, encode here, write nothing."""
    source, encoder, mine = _parts_of(config, shards, threads)
    ahead: queue.Queue[Any] = queue.Queue(maxsize=2)

    def decode() -> None:
        for shard in mine:
            for chunk in source.read(shard):
                ahead.put(chunk)
        ahead.put(None)

    threading.Thread(target=decode, daemon=True).start()
    while (chunk := ahead.get()) is not None:
        encoder.encode(chunk.table)
        results.put((time.monotonic(), chunk.num_in))


def bare_encoding(shards: list[Path], results: Any, *, config: Config) -> None:
    """Encode one decoded chunk again and again on one thread."""
    source, encoder, mine = _parts_of(config, shards, 1)
    chunk = next(source.read(mine[0]))
    for _ in range(ENCODED_CHUNKS):
        encoder.encode(chunk.table)
        results.put((time.monotonic(), chunk.num_in))


def _parts_of(config: Config, shards: list[Path], threads: int) -> tuple[Any, Any, list[Any]]:
    import torch

    from zscmr_ray.stages.embed.plan import plan_embed
    from zscmr_ray.stages.embed.run import embed_job

    torch.set_num_threads(threads)
    job = embed_job(config, plan_embed(config))
    named = {shard.key: shard for shard in job.shards}
    return job.source, job.build_encoder(), [named[path.name] for path in shards]


# -- the plain pipeline of Ray's documentation ------------------------------------------------------------


class Processor:
    """Hugging Face's processor for the model's input, without rescaling and normalisation."""

    def __init__(self) -> None:
        import transformers

        self.process = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 256},
            crop_size={"height": 224, "width": 224},
            do_rescale=False,
            do_normalize=False,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pictures to `pixel_values`, uint8 [B, 3, 224, 224]."""
        return {"pixel_values": self.process(list(batch["image"]), return_tensors="np")["pixel_values"]}


def process(batch: dict[str, Any]) -> dict[str, Any]:
    """The processor as a task, as most pipelines have it."""
    return Processor()(batch)


class Model:
    """Our model on `pixel_values`, on one thread; `processes` as well where it gets pictures. Notes each batch's time."""

    def __init__(self, model: str, times: str, *, processes: bool) -> None:
        import torch

        from zscmr_ray.engine.vector_model import find_model, load_model

        torch.set_num_threads(1)
        self.model, _ = load_model(find_model(model, own=Store(model)), backbones=("image",))
        self.processor = Processor() if processes else None
        self.times = Path(times)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch to its vectors."""
        import torch

        pixels_B3HW = (self.processor(batch) if self.processor else batch)["pixel_values"]
        pixels_BHW3 = np.ascontiguousarray(np.asarray(pixels_B3HW, np.uint8).transpose(0, 2, 3, 1))
        vectors_BD, _ = self.model.encode_images(torch.from_numpy(pixels_BHW3))
        with self.times.open("a") as file:
            file.write(f"{time.monotonic()} {len(pixels_BHW3)}\n")
        return {"vector": vectors_BD.numpy()}


def run_plain(folder: Path, *, model: Path, num_rows: int) -> dict[str, float]:
    """Images/s of the pipeline in two forms: processor in tasks before one actor, and both in two actors."""
    forms: dict[str, dict[str, Any]] = {
        "processor_in_tasks": {"processes": False, "actors": 1, "num_cpus": 1.0},
        "processor_in_actors": {"processes": True, "actors": 2, "num_cpus": 0.5},
    }
    return {
        name: _plain(folder, name, model=model, num_rows=num_rows, **form) for name, form in forms.items()
    }


def _plain(
    folder: Path, name: str, *, model: Path, num_rows: int, processes: bool, actors: int, num_cpus: float
) -> float:
    import ray

    times, output = folder / f"{name}.txt", folder / f"{name}-out"
    pictures = ray.data.read_images(str(folder / "images"), mode="RGB")
    if not processes:
        pictures = pictures.map_batches(process, batch_size=_REPORT_ROWS)
    vectors = pictures.map_batches(
        Model,
        fn_constructor_args=(str(model), str(times)),
        fn_constructor_kwargs={"processes": processes},
        batch_size=_REPORT_ROWS,
        num_cpus=num_cpus,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    vectors.write_parquet(str(output))
    ended_s = time.monotonic()
    lines = [line.split() for line in times.read_text().splitlines()]
    arrivals = [(float(at_s), int(rows)) for at_s, rows in lines]
    assert sum(rows for _, rows in arrivals) == num_rows
    return steady_rate(arrivals, ended_s)


def timed(name: str, measure: Callable[[], Any]) -> Any:
    """Run one measurement and say on stderr what it gave."""
    started_s = time.monotonic()
    found = measure()
    print(f"{name}: {found} ({time.monotonic() - started_s:.0f} s)", file=sys.stderr, flush=True)
    return found
