"""`zscmr serve` told to stop (SIGTERM) while requests are in progress: each of them is answered, the next ones are told 503.

The requests in progress wait for a model that a slow machine would have: nothing here depends on how long that is.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.ray_nodes import BIN, words_of
from tests.serving.served import make_served_run
from zscmr_ray.client import Client

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(600)]

WORKERS = 8
READY_S = 180.0


def test_a_stop_ends_what_is_in_progress_and_refuses_the_rest(tmp_path: Path) -> None:
    config = make_served_run(tmp_path / "run")
    url = f"http://127.0.0.1:{config.serve.port}"
    log = (tmp_path / "serve.log").open("w")
    command = [str(BIN / "zscmr"), "serve", "--set=ray.num_cpus=2", *words_of(config)]
    service = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with Client(url) as client:
            assert client.ready(wait_s=READY_S), (tmp_path / "serve.log").read_text()
        ended, answers, broken = threading.Event(), list[int](), list[str]()
        threads = [
            threading.Thread(target=ask, args=(url, number, ended, answers, broken))
            for number in range(WORKERS)
        ]
        for thread in threads:
            thread.start()
        while len(answers) < 5 * WORKERS:
            time.sleep(0.05)
        service.send_signal(signal.SIGTERM)
        code = service.wait(READY_S)
        ended.set()
        for thread in threads:
            thread.join()
    finally:
        if service.poll() is None:
            service.terminate()
            service.wait(READY_S)
        log.close()
    said = (tmp_path / "serve.log").read_text()
    assert code == 0, said
    assert "did not end" not in said and "may be lost" not in said, said
    assert not broken, broken
    assert set(answers) <= {200, 503}, set(answers)
    print(f"answered {answers.count(200)}, refused {answers.count(503)}")


def ask(url: str, worker: int, ended: threading.Event, answers: list[int], broken: list[str]) -> None:
    """Ask without a pause, a new connection each: refused ones are the end, answers that never come are kept."""
    number = 0
    while not ended.is_set():
        number += 1
        question = {"query": {"text": f"item {worker} {number}"}, "target": "text", "k": 2}
        try:
            answer = httpx.post(f"{url}/v1/search", json=question, timeout=60.0)
        except httpx.ConnectError:
            return
        except httpx.HTTPError as error:
            broken.append(repr(error))
            return
        answers.append(answer.status_code)
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
