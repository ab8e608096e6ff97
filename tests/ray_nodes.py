"""A Ray cluster of `ray start` nodes on this machine, each with its own folder and session: submitted to, and killed.

Nothing here is `ray stop`: a node is ended by the session that its `ray start --block` leads.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zscmr_ray.config import Config
from zscmr_ray.config.base import Section
from zscmr_ray.serving.front import free_ports

BIN = Path(sys.executable).parent
RAY = str(BIN / "ray")
START_LIMIT_S, _STARTS = 240, 3
_STORE_BYTES = 100_000_000


def words_of(config: Config) -> list[str]:
    """A configuration as command-line words: every setting that is not the default."""
    default = Config()
    return [
        f"--set={section}.{name}={value!r}"
        for section, settings in config
        if isinstance(settings, Section)
        for name, value in settings
        if value != getattr(getattr(default, section), name)
    ]


def session_pids(leader: int) -> dict[int, str]:
    """The living processes of a session, and what they are."""
    found = {}
    for folder in Path("/proc").iterdir():
        # A process may go between any two of these.
        with contextlib.suppress(ValueError, ProcessLookupError, FileNotFoundError):
            pid = int(folder.name)
            if os.getsid(pid) == leader:
                found[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


@dataclass
class Node:
    """One `ray start --block` and all it started."""

    process: subprocess.Popen[bytes]
    log: Path

    def pids(self, containing: str = "") -> list[int]:
        """Its processes whose command line has these words."""
        return [pid for pid, command in session_pids(self.process.pid).items() if containing in command]

    def workers(self) -> list[int]:
        """Its workers: tasks and actors at work or waiting."""
        return [
            pid
            for pid, command in session_pids(self.process.pid).items()
            if command.startswith("ray::") and "Agent" not in command
        ]

    def busy(self) -> list[int]:
        """Its workers that have a task or an actor."""
        return [
            pid
            for pid, command in session_pids(self.process.pid).items()
            if command.startswith("ray::") and "Agent" not in command and "IDLE" not in command
        ]

    def is_at_work(self) -> bool:
        """Whether one of its workers has a task or an actor."""
        return bool(self.busy())

    def is_up(self) -> bool:
        """Whether it has its raylet: `ray start --block` sees a second later than we that it is gone."""
        return self.process.poll() is None and bool(self.pids("/raylet/raylet"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the node."""
        for pid in session_pids(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to all of it, as when a machine is lost."""
        while session_pids(self.process.pid).keys() - {self.process.pid}:
            self.signal(signal.SIGKILL)
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """A head and its nodes. `environment` is what its clients need; nodes are started with it as well."""

    folder: Path
    environment: dict[str, str]
    host: str = "127.0.0.1"
    port: int = 0
    dashboard: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Of the head, for drivers."""
        return f"{self.host}:{self.port}"

    @property
    def head(self) -> Node:
        """The node that was started first."""
        return self.nodes[0]

    def start_head(
        self, *words: str, num_cpus: int = 1, extra: Mapping[str, str] | None = None, port: int | None = None
    ) -> Node:
        """Start the head, its dashboard on loopback, and wait until it takes jobs."""
        self.port, self.dashboard, client = free_ports(3)
        self.port = port or self.port
        self.environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{self.dashboard}"
        command = [
            "--head", f"--port={self.port}", f"--node-ip-address={self.host}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}",
            f"--num-cpus={num_cpus}", *words,
        ]  # fmt: skip
        head = self._start(command, lambda: self.call("ray", "job", "list").returncode == 0, extra=extra)
        self.nodes.insert(0, head)
        return head

    def add_node(self, *, num_cpus: int = 1, within: Sequence[str] = (), host: str | None = None) -> Node:
        """Start another node and wait until the cluster has it; `within` is what its command is run by."""
        # By name: of a node that was just killed the cluster believes for a while that it is alive.
        before = self.alive()
        words = [f"--address={self.address}", f"--num-cpus={num_cpus}"]
        words += [f"--node-ip-address={host}"] if host is not None else []
        self.nodes.append(self._start(words, lambda: bool(self.alive() - before), within=within))
        return self.nodes[-1]

    def alive(self) -> set[str]:
        """The ids of the nodes that the cluster says are alive."""
        code = (
            "import json, ray\n"
            f"ray.init({self.address!r}, logging_level='error', log_to_driver=False)\n"
            "print('nodes:', json.dumps([n['NodeID'] for n in ray.nodes() if n['Alive']]))"
        )
        said = self.call(sys.executable, "-c", code)
        assert said.returncode == 0, said.stderr
        # Ray prints what it has noticed between a driver's own lines.
        (line,) = [line for line in said.stdout.splitlines() if line.startswith("nodes:")]
        return set(json.loads(line.removeprefix("nodes:")))

    def drive(self, stage: str, config: Config, *, log: Path) -> subprocess.Popen[bytes]:
        """Begin a stage as a driver on the cluster, in a process of its own."""
        command = [str(BIN / "zscmr"), stage, "--address", self.address, *words_of(config)]
        with log.open("ab") as output:
            return subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def mend(self, *, num_nodes: int) -> None:
        """Have a head and so many nodes again, whatever was killed."""
        for node in self.nodes[1:]:
            if not node.is_up() or not self.head.is_up():
                node.kill()
                self.nodes.remove(node)
        if self.nodes and not self.head.is_up():
            self.nodes.pop(0).kill()
        if not self.nodes:
            self.start_head(num_cpus=0)
        while len(self.nodes) <= num_nodes:
            self.add_node()

    def call(
        self, *words: str, limit_s: float = 300, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client's command; `ray` and `zscmr` are this environment's."""
        program = str(BIN / words[0]) if words[0] in {"ray", "zscmr"} else words[0]
        return subprocess.run(
            [program, *words[1:]], env=self.environment, cwd=cwd, capture_output=True, text=True, check=False,
            timeout=limit_s,
        )  # fmt: skip

    def _start(
        self,
        words: Sequence[str],
        is_there: Callable[[], bool],
        *,
        within: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
    ) -> Node:
        """Start a node, again where Ray gave up on it: it waits 30 s, which a busy machine misses."""
        for _ in range(_STARTS):
            folder = self.folder / str(len(list(self.folder.iterdir())))
            folder.mkdir()
            (agent,) = free_ports(1)
            command = [
                *within, RAY, "start", "--block", "--disable-usage-stats", f"--temp-dir={folder}",
                f"--object-store-memory={_STORE_BYTES}", f"--dashboard-agent-listen-port={agent}", *words,
            ]  # fmt: skip
            with (folder / "node.log").open("wb") as output:
                process = subprocess.Popen(
                    command, env={**self.environment, **(extra or {})}, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            node = Node(process, folder / "node.log")
            deadline_s = time.monotonic() + START_LIMIT_S
            while process.poll() is None and time.monotonic() < deadline_s:
                if is_there():
                    return node
                time.sleep(0.2)
            node.kill()
        raise AssertionError(f"a node did not start {_STARTS} times: {node.log.read_text()[-3000:]}")


@contextlib.contextmanager
def cluster(*, num_nodes: int = 3, num_cpus: int = 1, host: str = "127.0.0.1") -> Iterator[Cluster]:
    """A head and further nodes for the length of a block (0: nothing is started yet); all of it ends by its pids."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "PATH": f"{BIN}:{os.environ['PATH']}"}
    # A short path: the sockets below it must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="zc", ignore_cleanup_errors=True) as folder:
        found = Cluster(Path(folder), environment, host)
        try:
            if num_nodes:
                found.start_head(num_cpus=num_cpus)
            for _ in range(num_nodes - 1):
                found.add_node(num_cpus=num_cpus)
            yield found
        finally:
            for node in reversed(found.nodes):
                node.kill()
