"""A network of its own for a node, behind a cable that can be pulled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Namespace:
    """A network of its own behind a pair of virtual cables; `run` is how a command is run in it."""

    name: str
    outside: str
    inside: str

    @property
    def run(self) -> tuple[str, ...]:
        """The words before a command."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the cable."""
        subprocess.run(["ip", "link", "set", f"{self.name}o", "down"], check=True)

    def mend(self) -> None:
        """Plug it in again."""
        subprocess.run(["ip", "link", "set", f"{self.name}o", "up"], check=True)


@contextlib.contextmanager
def network_namespace() -> Iterator[Namespace]:
    """A network namespace for the length of a block; the test is skipped, saying why, where that is not allowed."""
    number = os.getpid() % 250 + 1
    found = Namespace(f"zs{number}", f"10.231.{number}.1", f"10.231.{number}.2")
    name, outside, inside = found.name, f"{found.name}o", f"{found.name}i"
    commands = (
        f"ip netns add {name}",
        f"ip link add {outside} type veth peer name {inside}",
        f"ip link set {inside} netns {name}",
        f"ip addr add {found.outside}/24 dev {outside}",
        f"ip link set {outside} up",
        f"ip -n {name} addr add {found.inside}/24 dev {inside}",
        f"ip -n {name} link set {inside} up",
        f"ip -n {name} link set lo up",
    )
    try:
        for command in commands:
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip("no network namespace may be made here: there is no `ip`")
            if done.returncode != 0:
                pytest.skip(f"no network namespace may be made here: {command}: {done.stderr.strip()}")
        yield found
    finally:
        for command in (f"ip netns del {name}", f"ip link del {outside}"):
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(command.split(), capture_output=True, check=False)
