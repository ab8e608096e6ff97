"""The real service: tiny backbones, a checkpoint, an index, Ray Serve and HTTP through the client."""

from __future__ import annotations

import io
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from ray import serve

from tests.embeddings_run import item_ids, jpeg, write_embeddings
from tests.serving.served import NUM_ITEMS, listens_on, make_served_run
from tests.stages.small_run import small_config, write_checkpoint
from zscmr_ray.client import Client
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError, RefusedError, ServingError
from zscmr_ray.recipes import vary
from zscmr_ray.serving.app import base_url, build_app, open_service, running, start
from zscmr_ray.serving.front import free_ports
from zscmr_ray.serving.releases import check_servable
from zscmr_ray.stages.index import run_index

KEY = "only for this test"


@pytest.fixture(scope="module")
def served_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose embeddings really come from its checkpoint's encoder."""
    return make_served_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def api_key() -> Iterator[None]:
    """Set before Ray starts, so that its processes inherit it. On loopback too: a key that is set is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSCMR_API_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def service_url(served_run: Config, api_key: None, ray_local: None) -> Iterator[str]:
    with running(served_run) as url:
        yield url


def test_the_application_answers_through_a_handle_without_a_cluster(served_run: Config) -> None:
    handle = serve.run(build_app(served_run), _local_testing_mode=True)
    request = {"query": {"text": "caption 1 of item 4"}, "target": "text", "k": 2}
    answer = handle.search.remote(request).result()
    assert answer["results"][0]["id"] == f"{item_ids(NUM_ITEMS)[4]}#1"
    # Weights 0.6 and 0.4 over two unit blocks that are the query's own.
    assert answer["results"][0]["score"] == pytest.approx(1.0, abs=2e-3)


def test_a_wider_service_keeps_its_processes_and_another_configuration_does_not(served_run: Config) -> None:
    def version(**serve: object) -> str | None:
        config = vary(served_run, recipe="fgan", serve=serve)
        found: str | None = build_app(config)._bound_deployment.version
        return found

    assert version() == version(num_replicas=3) == version(max_replicas=4) is not None
    assert version() != version(max_k=50)


def test_search_over_http_by_text_picture_id_and_vector(service_url: str) -> None:
    ids = item_ids(NUM_ITEMS)
    with Client(service_url, api_key=KEY) as client:
        assert client.ready(wait_s=10)
        by_text = client.search(text="  caption 1\tof item 4 ", target="text", k=3)
        assert by_text.results[0].id == f"{ids[4]}#1"
        assert by_text.label_weight == 0.4
        by_image = client.search(image=jpeg("green"), k=2)
        assert {hit.id for hit in by_image.results} == {ids[1], ids[4]}
        # Equal scores, since equal pictures: in the order of their ids.
        assert [hit.id for hit in by_image.results] == sorted([ids[1], ids[4]])
        by_id = client.search(id=ids[1], k=2)
        assert [hit.id for hit in by_id.results] == [hit.id for hit in by_image.results]
        item = client.item(ids[4])
        assert item.captions == ("caption 0 of item 4", "caption 1 of item 4")
        assert client.thumbnail(ids[4]) == jpeg("green")
        (index,) = client.indexes()
        assert index["model_fingerprint"] == by_text.model_fingerprint
        with pytest.raises(DataError, match="another length"):
            client.search(vector=[1.0])
        with pytest.raises(DataError, match="larger than the gallery"):
            client.search(id=ids[0], k=NUM_ITEMS + 1)


def test_requests_come_through_haproxy_which_is_for_this_machine_and_user_only(service_url: str) -> None:
    folder = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
    processes = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "haproxy" and str(folder) in " ".join(process.info["cmdline"] or ())
    ]
    listening = set[tuple[str, int]]().union(*(listens_on(process) for process in processes))
    assert int(service_url.rpartition(":")[2]) in {port for _, port in listening}
    assert {host for host, _ in listening} == {"127.0.0.1"}
    (admin,) = folder.glob("*/admin")
    assert admin.stat().st_mode & 0o077 == 0


def test_bad_pictures_over_http_are_refused_with_their_reason(service_url: str) -> None:
    whole = jpeg("red", 64)
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    with Client(service_url, api_key=KEY) as client:
        for data, reason in (
            (b"", "empty_image"),
            (b"<!doctype html><html></html>", "not_an_image"),
            (whole[: len(whole) // 2], "truncated_image"),
            (buffer.getvalue(), "too_many_pixels"),
        ):
            with pytest.raises(DataError, match=reason):
                client.search(image=data)


def test_a_torn_index_is_found_when_the_service_is_opened(served_run: Config, tmp_path: Path) -> None:
    # The check before the start reads hashes only; the replica finds the torn file.
    shutil.copytree(served_run.data.run_uri, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "releases", ignore_errors=True)
    vectors = tmp_path / "index" / "text" / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    config = vary(
        served_run, recipe="fgan", data={"run_uri": str(tmp_path)}, serve={"port": free_ports(1)[0]}
    )
    with pytest.raises(DataError, match=r"vectors\.npy"):
        open_service(config)


def test_the_key_is_asked_for_and_the_page_is_open(service_url: str) -> None:
    with Client(service_url, max_retries=0) as client, pytest.raises(ServingError, match="API key"):
        client.search(text="a")
    page = httpx.get(service_url + "/")
    assert page.status_code == 200
    assert "Search pictures and captions" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    document = httpx.get(service_url + "/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    assert "/v1/search" in document["paths"]


def test_a_taken_port_is_named_with_a_remedy(served_run: Config, ray_local: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = vary(served_run, recipe="fgan", serve={"port": taken.getsockname()[1]})
        with pytest.raises(ConfigError, match=r"serve\.port"):
            start(config)


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    with pytest.raises(DataError, match="zscmr index"):
        check_servable(config)
    write_embeddings(config)
    run_index(config)
    with pytest.raises(DataError, match="zscmr train"):
        check_servable(config)
    meta = write_checkpoint(config)
    with pytest.raises(RefusedError) as caught:
        start(config)
    assert meta.fingerprint in str(caught.value)
    assert "ab" * 32 in str(caught.value)
    assert caught.value.exit_code == 4


def test_another_host_without_a_key_is_refused(served_run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSCMR_API_KEY", raising=False)
    config = vary(served_run, recipe="fgan", serve={"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="API key"):
        start(config)
    with pytest.raises(ConfigError, match="API key"):
        build_app(config)


def test_base_urls() -> None:
    assert base_url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert base_url("0.0.0.0", 81) == "http://127.0.0.1:81"
    assert base_url("::", 82) == "http://[::1]:82"
