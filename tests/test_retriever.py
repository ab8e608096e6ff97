"""ZeroShotRetriever: the vectors that embed writes, and a model that comes back bit for bit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import zscmr_ray
from tests.stages.small_run import small_config, write_checkpoint
from tests.tiny_duals import write_clip
from zscmr_ray.config import Config, EmbedSection
from zscmr_ray.data.decode import decode_image
from zscmr_ray.engine.checkpoint import FILES
from zscmr_ray.engine.vector_model import find_model, load_model
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.retriever import CARD, ZeroShotRetriever
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed.encoder import VectorEncoder
from zscmr_ray.stages.shards.pixels import pixels_column

TEXTS = ["a red square", "a  blue\tpicture of nothing", "one", "many words, and then some more of them"]


def pictures(*, count: int = 3, kind: str = "PNG") -> list[bytes]:
    """Files of noise in various proportions."""
    random = np.random.default_rng(count)
    found = []
    for number in range(count):
        pixels = random.integers(0, 255, (60 + 30 * number, 90, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = small_config(str(tmp_path / "run"))
    write_checkpoint(config)
    return config


@pytest.fixture
def model(config: Config) -> ZeroShotRetriever:
    return ZeroShotRetriever.from_pretrained(config.data.run_uri)


def embedded(config: Config, files: list[bytes], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """What the stage's own encoder writes for one row with all texts, and a row a picture."""
    place = find_model("checkpoint", own=stage_store(config, "train"))
    loaded, facts = load_model(place)
    assert loaded.image_backbone is not None and facts.region_grid is not None
    spec = loaded.image_backbone.spec
    pixels = [
        decode_image(
            data,
            size_px=spec.size_px,
            crop_fraction=spec.crop_fraction,
            interpolation=spec.interpolation,
            max_pixels=10**8,
            thumbnail_px=None,
        ).pixels_HW3
        for data in files
    ]
    rows = {
        "id": [str(n) for n in range(len(files))],
        "captions": [texts, *[[] for _ in files[1:]]],
        "pixels": pixels_column(np.stack(pixels)),
        "labels": [["x"]] * len(files),
        "thumbnail": [b""] * len(files),
        "source_shard": ["s"] * len(files),
        "source_offset": list(range(len(files))),
        "sha256": ["0" * 64] * len(files),
    }
    encoder = VectorEncoder(loaded, EmbedSection(), {}, num_regions=facts.region_grid**2)
    outputs = encoder.encode(pa.table(rows)).outputs
    image, text = (np.array(outputs[side]["vector"].to_pylist(), np.float16) for side in ("image", "text"))
    return image, text


def test_vectors_are_those_that_embed_writes(config: Config, model: ZeroShotRetriever) -> None:
    files = pictures()
    texts = [" ".join(text.split()) for text in TEXTS]
    image, text = embedded(config, files, texts)
    for given in (files, [Image.open(io.BytesIO(data)) for data in files]):
        found = model.encode_images(given)
        assert found.dtype == np.float32 and found.shape == (3, model.dimension)
        np.testing.assert_array_equal(found.astype(np.float16), image)
    np.testing.assert_array_equal(model.encode_texts(TEXTS).astype(np.float16), text)


def test_a_picture_alone_has_the_vector_it_has_in_a_batch(model: ZeroShotRetriever) -> None:
    files = pictures(count=66)
    together = model.encode_images(files)
    for number in (0, 63, 64, 65):
        np.testing.assert_allclose(model.encode_images([files[number]])[0], together[number], atol=1e-5)
    assert model.encode_images([]).shape == (0, model.dimension)
    assert model.encode_texts([]).shape == (0, model.dimension)


def test_an_opened_picture_is_turned_and_flattened_as_its_file(model: ZeroShotRetriever) -> None:
    turned, clear = io.BytesIO(), io.BytesIO()
    base = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    base.save(turned, "JPEG", exif=exif)
    layer = base.convert("RGBA")
    layer.putalpha(90)
    layer.save(clear, "PNG")
    for buffer in (turned, clear):
        opened = Image.open(io.BytesIO(buffer.getvalue()))
        np.testing.assert_array_equal(model.encode_images([opened]), model.encode_images([buffer.getvalue()]))


def test_the_round_trip_is_bit_equal(model: ZeroShotRetriever, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    model.save_pretrained(first)
    loaded = ZeroShotRetriever.from_pretrained(first)
    assert loaded.fingerprint == model.fingerprint and loaded.label_weight == model.label_weight
    loaded.save_pretrained(second)
    assert {path.name for path in first.iterdir()} == {*FILES, CARD}
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    files = pictures()
    np.testing.assert_array_equal(loaded.encode_images(files), model.encode_images(files))
    np.testing.assert_array_equal(loaded.encode_texts(TEXTS), model.encode_texts(TEXTS))


def test_a_saved_model_does_not_say_where_it_came_from(
    config: Config, model: ZeroShotRetriever, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert config.data.run_uri.encode() not in path.read_bytes(), path.name
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "run_uri" not in kept["data"] and "lr" in kept["optim"] and "serve" not in kept


def test_similarity_weighs_the_query(model: ZeroShotRetriever) -> None:
    texts, images = model.encode_texts(TEXTS), model.encode_images(pictures())
    region, label = model.blocks
    parts = [texts[:, b.start : b.stop] @ images[:, b.start : b.stop].T for b in (region, label)]
    expected = (1 - model.label_weight) * parts[0] + model.label_weight * parts[1]
    np.testing.assert_allclose(model.similarity(texts, images), expected, atol=1e-6)
    np.testing.assert_allclose(model.similarity(texts, images, label_weight=1.0), parts[1], atol=1e-6)


def test_a_revision_of_the_hub_is_the_one_that_is_loaded(config: Config, tmp_path: Path) -> None:
    """Through Hugging Face's own cache, without network."""
    other = small_config(str(tmp_path / "other"))
    write_checkpoint(other, label_temperature=0.5)
    cache = tmp_path / "cache" / "models--owner--name"
    expected = {}
    for revision, commit, run in (("main", "a" * 40, config), ("v2", "b" * 40, other)):
        model = ZeroShotRetriever.from_pretrained(run.data.run_uri)
        model.save_pretrained(cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
        expected[revision] = model.fingerprint
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    assert expected["main"] != expected["v2"]
    assert ZeroShotRetriever.from_pretrained("hf:owner/name", **options).fingerprint == expected["main"]
    found = ZeroShotRetriever.from_pretrained("hf:owner/name", revision="v2", **options)
    assert found.fingerprint == expected["v2"]
    with pytest.raises(ConfigError, match="cannot fetch the model hf:owner/name"):
        ZeroShotRetriever.from_pretrained("hf:owner/name", revision="v3", **options)


def test_nothing_but_an_id_reaches_for_the_network(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr("zscmr_ray.retriever.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such model") as caught:
        ZeroShotRetriever.from_pretrained("runs/mistyped")
    assert "hf:" in str(caught.value)
    with pytest.raises(ConfigError, match="only a model of the hub has revisions"):
        ZeroShotRetriever.from_pretrained(config.data.run_uri, revision="v2")
    with pytest.raises(ConfigError, match="unknown arguments"):
        ZeroShotRetriever.from_pretrained(config.data.run_uri, trust_remote_code=True)


def test_only_safe_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, object] = {}

    def fetch(repo_id: str, **options: object) -> str:
        asked.update(options)
        return str(tmp_path / "empty")

    monkeypatch.setattr("zscmr_ray.retriever.snapshot_download", fetch)
    with pytest.raises(ConfigError):
        ZeroShotRetriever.from_pretrained("hf:owner/name", revision="abc")
    assert asked["revision"] == "abc"
    files = ["pytorch_model.bin", "a.pkl", "a.pt", "code.py", "model.safetensors", "meta.json", "vocab.txt"]
    kept = list(filter_repo_objects(files, allow_patterns=asked["allow_patterns"]))  # type: ignore[arg-type]
    assert kept == ["model.safetensors", "meta.json", "vocab.txt"]


def test_a_pretrained_dual_encoder_encodes_but_is_not_ours_to_save(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    model = ZeroShotRetriever.from_pretrained(f"hf:{folder}")
    vectors = model.encode_images(pictures())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert model.similarity(model.encode_texts(["a dog"]), vectors).shape == (1, 3)
    with pytest.raises(ConfigError, match="Hugging Face's own"):
        model.save_pretrained(tmp_path / "out")


def test_a_changed_weight_is_refused(model: ZeroShotRetriever, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "out")
    weights = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(weights)
    with pytest.raises(RefusedError, match="fingerprint differs"):
        ZeroShotRetriever.from_pretrained(tmp_path / "out")


def test_bad_input_is_named(model: ZeroShotRetriever) -> None:
    good = pictures(count=1)[0]
    with pytest.raises(DataError, match="number 1: truncated_image"):
        model.encode_images([good, good[:-200]])
    with pytest.raises(DataError, match="number 0: too_many_pixels"):
        model.encode_images([good], max_pixels=10)
    with pytest.raises(DataError, match="number 1"):
        model.encode_texts(["a", " \n"])
    for call, wrong in (
        (model.encode_texts, "a cat"),
        (model.encode_images, good),
        (model.encode_texts, [1]),
    ):
        with pytest.raises(ConfigError, match="a list is needed"):
            call(wrong)  # type: ignore[operator]


def test_it_is_found_at_the_top_without_loading_torch(tmp_path: Path) -> None:
    assert zscmr_ray.ZeroShotRetriever is ZeroShotRetriever
    with pytest.raises(AttributeError):
        _ = zscmr_ray.nothing
    code = (
        "import sys, zscmr_ray\nassert 'torch' not in sys.modules\n"
        "zscmr_ray.ZeroShotRetriever\nassert 'torch' in sys.modules\nassert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
