"""A call in another thread: its answer, its error, an interrupt by whoever watches; and a cluster that does not answer."""

from __future__ import annotations

import socket
import threading

import pytest

from zscmr_ray.errors import TrainingError
from zscmr_ray.stages import interruptible as module
from zscmr_ray.stages.interruptible import ConnectionWatch, interruptible


def test_answers_and_errors_pass_through() -> None:
    assert interruptible(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_a_lost_head_ends_the_wait_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = ConnectionWatch(f"127.0.0.1:{head.getsockname()[1]}", lost_after_s=0.2)
        watch()
    with pytest.raises(
        TrainingError, match=r"connection to the cluster is lost.*127.0.0.1.*same command"
    ) as error:
        interruptible(ended.wait, watch=watch)
    assert error.value.exit_code == 1
    ended.set()
