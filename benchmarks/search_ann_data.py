"""The slow input of `search_ann`, made once (`make bench-data`) and kept in .cache/search_ann: a million region vectors.

    regions/   EfficientNet-Lite0's 7 x 7 regions of real pictures, float16, 512 pictures a file (it goes on after a kill)
    run/       embeddings/ of a run: an image row for every region through FGAN's region head, the training captions
    queries.npy, queries.json   the captions of Flickr8k's test pictures, which no part of the above has seen

The head is trained briefly on Flickr8k's training pictures and captions, and again if what follows it is cut short.
Pictures: Flickr8k and fashion products of the shared data (search_ann_regions.py).
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from zscmr_ray.cli.session import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from search_ann_regions import GRID, ROOT, SHARED, encode_all, region_files  # noqa: E402

from zscmr_ray.config import Config, DataSection, IndexSection, PreprocessSection  # noqa: E402
from zscmr_ray.data.pairs import PairFeatures  # noqa: E402
from zscmr_ray.engine.bare import BareEngine  # noqa: E402
from zscmr_ray.engine.class_split import configured_split  # noqa: E402
from zscmr_ray.engine.trained import train_model  # noqa: E402
from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest  # noqa: E402
from zscmr_ray.models.backbones import load_text_backbone  # noqa: E402
from zscmr_ray.models.fgan import Fgan  # noqa: E402
from zscmr_ray.recipes import fgan_regions_only, vary  # noqa: E402
from zscmr_ray.schema import PARQUET_OPTIONS, image_embeddings_schema, text_embeddings_schema  # noqa: E402
from zscmr_ray.stages import stage_store  # noqa: E402
from zscmr_ray.stages.preprocess.encoder import describe_backbones  # noqa: E402
from zscmr_ray.storage import Store  # noqa: E402

CACHE = ROOT / ".cache" / "search_ann"
RUN, QUERIES = CACHE / "run", CACHE / "queries.npy"
TRAIN_CAPTIONS, EPOCHS, SEED = 2, 6, 0
WIDTH, FINGERPRINT = 512, "5e" * 32


def main() -> None:
    """Make whatever is not there yet."""
    if not SHARED.exists():
        print("no shared data beside the checkout: nothing to make")
        return
    if QUERIES.exists():
        print(f"{CACHE} is complete")
        return
    encode_all()
    write_run()


def make_config() -> Config:
    """The run whose embeddings are indexed: inverted lists whatever the size of a reduced trial."""
    return Config(data=DataSection(run_uri=str(RUN)), index=IndexSection(kind="ivf"))


def write_run() -> None:
    """Train, project, and write embeddings and queries."""
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    flickr = [entry for entry in region_files() if entry[0].name.startswith("flickr8k")]
    rows = [
        (path, place, key, texts) for path, pictures in flickr for place, (key, texts) in enumerate(pictures)
    ]
    tokens = Tokens([text for _, _, key, texts in rows for text in used_captions(key, texts)])
    model = train(rows, tokens)
    store = stage_store(make_config(), "embed")
    parts, distinct = write_images(model, store)
    texts = [
        (key, text)
        for _, _, key, all_texts in rows
        if not is_held_out(key)
        for text in used_captions(key, all_texts)
    ]
    parts.append(write_texts(texts, embed_texts(model, tokens, [text for _, text in texts]), store))
    key = StageKey(stage="embed", config={}, input_fingerprint="search_ann")
    info = {"fingerprint": FINGERPRINT, "blocks": BLOCKS, "model": "checkpoint"}
    counts = {"image": distinct, "text": len(texts)}
    write_manifest(
        store, Manifest(key=key, config_hash=key.config_hash, counts=counts, parts=parts, info=info)
    )
    asked = [text for _, _, name, all_texts in rows if is_held_out(name) for text in all_texts]
    (CACHE / "queries.json").write_text(json.dumps(asked))
    np.save(QUERIES, embed_texts(model, tokens, asked))
    print(f"{distinct:,} distinct region vectors, {len(texts):,} captions, {len(asked):,} held-out queries")


BLOCKS = [{"name": "region", "start": 0, "stop": WIDTH}]


def is_held_out(key: str) -> bool:
    return key.startswith("test/")


def used_captions(key: str, texts: list[str]) -> list[str]:
    return texts if is_held_out(key) else texts[:TRAIN_CAPTIONS]


class Tokens:
    """MiniLM's token states of distinct captions, float16."""

    def __init__(self, captions: list[str]) -> None:
        backbone = load_text_backbone("minilm", max_tokens=64)
        distinct = sorted(set(captions))
        self._states: dict[str, npt.NDArray[np.float16]] = {}
        with torch.inference_mode():
            for start in range(0, len(distinct), 256):
                block = distinct[start : start + 256]
                features = backbone(block)
                states = features.tokens_BLD.half().numpy()
                for text, row, length in zip(block, states, features.lengths_B.tolist(), strict=True):
                    self._states[text] = row[:length].copy()

    def __getitem__(self, caption: str) -> npt.NDArray[np.float16]:
        return self._states[caption]


def train(rows: list[tuple[Path, int, str, list[str]]], tokens: Tokens) -> Fgan:
    """FGAN's region embedding on the training and validation pictures, two captions each."""
    chosen = [row for row in rows if not is_held_out(row[2])]
    config = vary(
        fgan_regions_only(),
        recipe="fgan_regions_only",
        split={"kind": "none"},
        optim={"max_epochs": EPOCHS},
        train={"checkpoint_every_steps": 10**9, "seed": SEED},
    )
    captions = [used_captions(key, texts) for _, _, key, texts in chosen]
    states = [tokens[text] for texts in captions for text in texts]
    files: dict[Path, Any] = {}
    for path, *_ in chosen:
        files.setdefault(path, np.load(path, mmap_mode="r") if path not in files else files[path])
    features = PairFeatures(
        ids=[key for _, _, key, _ in chosen],
        regions_NRD=np.stack([files[path][place] for path, place, _, _ in chosen]),
        token_values_TD=np.concatenate(states),
        token_starts_M1=np.cumsum([0, *(len(state) for state in states)]),
        caption_starts_N1=np.cumsum([0, *(len(texts) for texts in captions)]),
        captions=captions,
        labels=[()] * len(chosen),
        partition=np.array([key.partition("/")[0] for _, _, key, _ in chosen], dtype="U5"),
        prior_logits_NC=None,
        image_hash=[key for _, _, key, _ in chosen],
        thumbnails=[],
    )
    info = describe_backbones(PreprocessSection(teacher="none"))
    with tempfile.TemporaryDirectory() as folder:
        trained = train_model(
            config,
            configured_split(features.labels, config.split),
            features,
            info=info,
            store=Store(folder),
            make_engine=lambda step, total: BareEngine(step, optim=config.optim, total_steps=total),
            stream=sys.stderr,
        )
    assert isinstance(trained.model, Fgan)
    return trained.model


def project(model: Fgan, regions_BRD: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Every region alone through the trained head, [B x R, D]: token -> Linear -> LayerNorm -> unit vector."""
    head = model.image.region
    assert head is not None
    with torch.inference_mode():
        features = torch.from_numpy(np.array(regions_BRD)).float()
        lengths_B = torch.full((len(features),), features.shape[1])
        vectors_BRD = torch.nn.functional.normalize(
            head.project(model.image.trunk(features, lengths_B)).float(), dim=2
        )
    return vectors_BRD.reshape(-1, WIDTH).half().numpy()


def embed_texts(model: Fgan, tokens: Tokens, captions: list[str]) -> npt.NDArray[np.float16]:
    """The text tower's region embedding of captions, [M, D]."""
    made = []
    for start in range(0, len(captions), 256):
        states = [torch.from_numpy(tokens[text]).float() for text in captions[start : start + 256]]
        lengths_B = torch.tensor([len(state) for state in states])
        with torch.inference_mode():
            found = model.encode_text(torch.nn.utils.rnn.pad_sequence(states, batch_first=True), lengths_B)
        assert found.region_BD is not None
        made.append(found.region_BD.half().numpy())
    return np.concatenate(made)


def write_images(model: Fgan, store: Store) -> tuple[list[Any], int]:
    """A part for every file of regions; a vector equal to an earlier one, bit for bit, is left out."""
    seen: set[bytes] = set()
    records, total = [], 0
    schema = image_embeddings_schema(
        dimension=WIDTH, num_regions=None, metadata={"fingerprint": FINGERPRINT, "blocks": BLOCKS}
    )
    for path, pictures in region_files():
        vectors_ND = project(model, np.load(path, mmap_mode="r"))
        ids = [f"{key}#{region}" for key, _ in pictures for region in range(GRID * GRID)]
        keep = []
        for row, data in enumerate(vectors_ND.view(np.uint8)):
            text = data.tobytes()
            if hash_of(text) not in seen:
                seen.add(hash_of(text))
                keep.append(row)
        columns = {
            "id": pa.array([ids[row] for row in keep]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND[keep].ravel()), WIDTH),
            "thumbnail": pa.nulls(len(keep), pa.binary()),
            "labels": pa.array([[ids[row].partition("/")[0]] for row in keep], pa.list_(pa.string())),
            "region_weights": pa.nulls(len(keep)),
            "source_shard": pa.array([path.name] * len(keep)),
            "source_offset": pa.array(keep, pa.int64()),
            "sha256": pa.nulls(len(keep), pa.string()),
        }
        records.append(write_part(store, f"image/part-{path.stem}.parquet", columns, schema))
        total += len(keep)
    return records, total


def write_texts(rows: list[tuple[str, str]], vectors_MD: npt.NDArray[np.float16], store: Store) -> Any:
    """One part of captions; captions of an item are numbered."""
    schema = text_embeddings_schema(dimension=WIDTH, metadata={"fingerprint": FINGERPRINT, "blocks": BLOCKS})
    columns = {
        "id": pa.array([f"{key}#{place}" for place, (key, _) in enumerate(rows)]),
        "item_id": pa.array([key for key, _ in rows]),
        "caption": pa.array([text for _, text in rows]),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_MD.ravel()), WIDTH),
        "labels": pa.array([["caption"]] * len(rows), pa.list_(pa.string())),
    }
    return write_part(store, "text/part-captions.parquet", columns, schema)


def write_part(store: Store, name: str, columns: dict[str, Any], schema: pa.Schema) -> Any:
    with store.open_write(name) as file:
        pq.write_table(pa.table(columns, schema=schema), file, **PARQUET_OPTIONS)
    return part_record(store, name, rows=len(columns["id"]))


def hash_of(data: bytes) -> bytes:
    """Sixteen bytes that stand for a vector."""
    return hashlib.blake2b(data, digest_size=16).digest()


if __name__ == "__main__":
    main()
