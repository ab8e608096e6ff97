"""A service without a model: an encoder that knows the captions it was indexed with, over a real small index."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.embeddings_run import FINGERPRINT, run_config, unit_vectors, write_embeddings
from tests.serving.imfa_run import imfa_run
from zscmr_ray.config import Config, ServeSection
from zscmr_ray.config.serving import DEFAULT_INDEX
from zscmr_ray.errors import DataError
from zscmr_ray.models.base import VectorBlock
from zscmr_ray.serving.app import open_service
from zscmr_ray.serving.live import FixedIndex
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.searcher import Searcher
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.version import local_version
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run_index

NUM_ITEMS = 12
CAPTIONS_PER_ITEM = 2


class FakeEncoder:
    """Text "caption c of item n" gives that caption's stored vector; a picture gives a vector of its size."""

    fingerprint = FINGERPRINT
    label_weight = 0.25
    blocks = (VectorBlock("region", 0, 6), VectorBlock("label", 6, 10))

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._stored = unit_vectors(NUM_ITEMS * CAPTIONS_PER_ITEM, seed=2).astype(np.float32)

    def clean(self, text: str) -> str:
        if not text.strip():
            raise DataError("the query text is empty", got=repr(text))
        return text.strip()

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except OSError as error:
            raise DataError(
                "the query picture cannot be used", got="not_an_image", expected="a JPEG"
            ) from error

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.batches.append(len(texts))
        rows = []
        for text in texts:
            _, caption, _, _, item = text.split()
            rows.append(self._stored[int(item) * CAPTIONS_PER_ITEM + int(caption)])
        return np.stack(rows)

    def encode_images(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        return np.concatenate([unit_vectors(1, seed=int(image.sum())) for image in pixels]).astype(np.float32)


def fixed_service(encoder: FakeEncoder, config: Config, settings: ServeSection) -> SearchService:
    """A service of this encoder and the run's index, which nothing changes."""
    metrics = Metrics()
    searcher = Searcher(stage_store(config, "index"))
    version = local_version(DEFAULT_INDEX, encoder, searcher, settings, metrics)
    return SearchService(FixedIndex(version), settings, metrics)


@pytest.fixture(scope="session")
def indexed_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished index of 12 items and 24 captions."""
    config = run_config(tmp_path_factory.mktemp("run"))
    write_embeddings(config, num_items=NUM_ITEMS, captions_per_item=CAPTIONS_PER_ITEM)
    run_index(config)
    return config


@pytest.fixture(scope="session")
def imfa_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A small run of IMFA whose index keeps regions; its encoder is real."""
    return imfa_run(tmp_path_factory.mktemp("imfa"))


@pytest.fixture(scope="session")
def imfa_service(imfa_config: Config) -> Iterator[SearchService]:
    """The service of that run, in this process."""
    service = open_service(imfa_config)
    yield service
    service.close()


@pytest.fixture
def imfa_http(imfa_service: SearchService, imfa_config: Config) -> Iterator[TestClient]:
    """Its HTTP application, in process, without a key."""
    app = http_app(imfa_service, imfa_config.serve, api_keys=())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def settings() -> ServeSection:
    return ServeSection(max_body_bytes=20_000, max_k=20, max_queued_requests=8)


@pytest.fixture
def service(indexed_run: Config, encoder: FakeEncoder, settings: ServeSection) -> Iterator[SearchService]:
    built = fixed_service(encoder, indexed_run, settings)
    yield built
    built.close()


@pytest.fixture
def http(service: SearchService, settings: ServeSection) -> Iterator[TestClient]:
    """The HTTP application, in process, without a key."""
    with TestClient(http_app(service, settings, api_keys=()), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def run_folder(indexed_run: Config) -> Path:
    return Path(indexed_run.data.run_uri)
