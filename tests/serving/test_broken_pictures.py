"""The corpus of damaged pictures of tests/data over HTTP: a 4xx each, or a 200 where the damaged bytes are still a picture.

Which it must be is asked of the decoder itself (tests/data/test_mutations.py holds that to its own promises).
"""

from __future__ import annotations

import base64
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.data.mutate import mutants
from tests.data.mutation_bombs import _PICTURES as BOMBS
from tests.data.mutation_pictures import pictures
from zscmr_ray.config import Config
from zscmr_ray.engine.vector_model import find_model
from zscmr_ray.errors import DataError
from zscmr_ray.machine import peak_rss_bytes
from zscmr_ray.recipes import vary
from zscmr_ray.serving.app import open_service
from zscmr_ray.serving.encoder import ModelEncoder
from zscmr_ray.serving.routes import http_app
from zscmr_ray.stages import stage_store

MAX_PIXELS = 16_000_000
MAX_GROWTH_MB = 300
PER_ENCODING, PER_ENCODING_LONG = 8, 400


@pytest.fixture(scope="module")
def guarded(imfa_config: Config) -> Iterator[TestClient]:
    config = vary(imfa_config, recipe="fgan", serve={"max_pixels": MAX_PIXELS, "default_deadline_ms": 60_000})
    service = open_service(config)
    app = http_app(service, config.serve, api_keys=())
    # As in production: damaged metadata makes PIL warn, not fail.
    with warnings.catch_warnings(), TestClient(app, raise_server_exceptions=False) as client:
        warnings.simplefilter("ignore")
        yield client
    service.close()


@pytest.fixture(scope="module")
def encoder(imfa_config: Config) -> ModelEncoder:
    return ModelEncoder(
        find_model("checkpoint", own=stage_store(imfa_config, "train")), max_pixels=MAX_PIXELS
    )


def ask(http: TestClient, data: bytes, *, inline: bool) -> tuple[int, str]:
    if inline:
        body = {"query": {"image_b64": base64.b64encode(data).decode()}, "k": 1}
        answer = http.post("/v1/search", json=body)
    else:
        answer = http.post("/v1/search", files={"image": ("x", data)}, data={"request": '{"k": 1}'})
    return answer.status_code, answer.text


def run(http: TestClient, encoder: ModelEncoder, *, per_encoding: int, seed: int) -> Counter[int]:
    """Send every mutant, by upload and inline in turn; each is answered as the decoder judges it."""
    seen: Counter[int] = Counter()
    for name, specimen in pictures().items():
        every = mutants(
            specimen.data, per_encoding, seed=seed, places=specimen.places, repair=specimen.repair
        )
        for number, mutant in enumerate(every):
            try:
                encoder.decode(mutant.data)
                expected = 200
            except DataError:
                expected = 422
            status, text = ask(http, mutant.data, inline=number % 2 == 1)
            assert status == expected, f"{name} {number} {mutant.how}: {text}"
            seen[status] += 1
    return seen


def test_damaged_pictures_are_refused_or_still_pictures_and_memory_stays(
    guarded: TestClient, encoder: ModelEncoder
) -> None:
    run(guarded, encoder, per_encoding=1, seed=1)
    before_bytes = peak_rss_bytes()
    seen = run(guarded, encoder, per_encoding=PER_ENCODING, seed=20_260)
    assert set(seen) == {200, 422} and min(seen.values()) >= 20
    assert (peak_rss_bytes() - before_bytes) >> 20 < MAX_GROWTH_MB


@pytest.mark.parametrize("name", [name for name, (_, wanted) in BOMBS.items() if wanted != "decoded"])
def test_small_pictures_that_ask_for_gigabytes_are_refused_at_once(guarded: TestClient, name: str) -> None:
    make, wanted = BOMBS[name]
    data = make()
    before_bytes = peak_rss_bytes()
    status, text = ask(guarded, data, inline=False)
    # What is too long for a body is refused before it is looked at.
    assert (status, wanted in text) in {(422, True), (413, False)}, text
    assert (peak_rss_bytes() - before_bytes) >> 20 < MAX_GROWTH_MB


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_damaged_pictures(guarded: TestClient, encoder: ModelEncoder) -> None:
    run(guarded, encoder, per_encoding=1, seed=1)
    before_bytes = peak_rss_bytes()
    for seed in (1, 2):
        seen = run(guarded, encoder, per_encoding=PER_ENCODING_LONG, seed=seed)
        assert set(seen) == {200, 422}
    assert (peak_rss_bytes() - before_bytes) >> 20 < MAX_GROWTH_MB
