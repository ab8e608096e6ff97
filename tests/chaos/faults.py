"""What is done to a cluster in the middle of a stage; each fault returns what undoes it, or None."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from tests.ray_nodes import Cluster, Node

Fault = Callable[[Cluster, "subprocess.Popen[bytes]", Node, contextlib.ExitStack], Callable[[], None] | None]


def kill_worker(
    on: Cluster, driver: subprocess.Popen[bytes], node: Node, stack: contextlib.ExitStack
) -> None:
    # Not an idle one, which nobody would miss.
    busy = node.busy() or [pid for one in on.nodes for pid in one.busy()]
    os.kill(busy[-1], signal.SIGKILL)


def kill_raylet(
    on: Cluster, driver: subprocess.Popen[bytes], node: Node, stack: contextlib.ExitStack
) -> None:
    for pid in node.pids("/raylet/raylet"):
        os.kill(pid, signal.SIGKILL)
    while node.is_up():
        time.sleep(0.05)


def kill_head(
    on: Cluster, driver: subprocess.Popen[bytes], node: Node, stack: contextlib.ExitStack
) -> Callable[[], None]:
    on.head.kill()
    return lambda: on.mend(num_nodes=len(on.nodes) - 1)


def kill_driver(
    on: Cluster, driver: subprocess.Popen[bytes], node: Node, stack: contextlib.ExitStack
) -> None:
    driver.kill()


def slow_down(on: Cluster, driver: subprocess.Popen[bytes], node: Node, stack: contextlib.ExitStack) -> None:
    """Stop every process of the node for nine tenths of the time, until the stage is over."""
    ended = threading.Event()

    def breathe() -> None:
        while not ended.is_set():
            node.signal(signal.SIGSTOP)
            ended.wait(0.45)
            node.signal(signal.SIGCONT)
            ended.wait(0.05)

    thread = threading.Thread(target=breathe)
    thread.start()
    stack.callback(thread.join)
    stack.callback(ended.set)


FAULTS: dict[str, Fault] = {
    "worker": kill_worker,
    "raylet": kill_raylet,
    "head": kill_head,
    "driver": kill_driver,
    "slow": slow_down,
}
WORDS = {
    "worker": "kill -9 of a worker process",
    "raylet": "kill -9 of a raylet (a node)",
    "head": "kill -9 of the head",
    "driver": "kill -9 of the driver",
    "slow": "a node at a tenth of its speed",
    "storage": "kill -9 of the storage server, back after 3 s",
    "cut": "a node cut off from the network",
    "disk": "a full disk",
}
