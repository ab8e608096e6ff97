"""The files an operator applies: one place for sizes, `ray up` files by Ray's own schema, the image's recipe."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from zscmr_ray import __version__
from zscmr_ray.cli.session import RAY_ENVIRONMENT
from zscmr_ray.config.load import load_config

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SIZES = yaml.safe_load((CLUSTER / "sizes.yaml").read_text())
LAUNCHERS = ("aws", "gcp", "onprem")
CONFIGS = [ROOT / "ray_config.yaml", *sorted(CLUSTER.rglob("ray_config.yaml"))]
# What a size is called in one file or another: such a line must say where its value comes from.
SIZE_KEYS = re.compile(
    r"^\s*(?:- )?(max_workers|min_workers|minReplicas|maxReplicas|min_replicas|max_replicas|num_replicas|num_workers|"
    r"num_encoders|encoder_gpus|encoder_threads|CPU|GPU|nvidia\.com/gpu|idle_timeout_minutes|idleTimeoutSeconds|"
    r"InstanceType|machineType|image|rayVersion|target_ongoing_requests): (?!.*# = )(?P<value>.*)$",
    re.MULTILINE,
)


def read_yaml(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.fixture(scope="module")
def resize() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resize", CLUSTER / "resize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_marked_line_says_what_the_sizes_say() -> None:
    command = [sys.executable, str(CLUSTER / "resize.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python cluster/resize.py:\n{done.stdout}{done.stderr}"


def test_a_size_that_changes_changes_every_file_that_names_it(resize: ModuleType) -> None:
    sizes = resize.read_sizes()
    sizes["encode"].max_nodes = 99
    changed = {
        path.name
        for path in resize.sized_files()
        if resize.resized(path.read_text(), sizes) != path.read_text()
    }
    assert changed == {"aws.yaml", "gcp.yaml", "ray-cluster.yaml"}
    failed, tried = doctest.testmod(resize)
    assert tried and not failed


def test_no_size_is_written_without_its_mark(resize: ModuleType) -> None:
    for path in resize.sized_files():
        for line in SIZE_KEYS.finditer(path.read_text()):
            # A head that runs no work, Ray's own minimum for machines by address, and Serve's word for "as many as needed".
            assert line["value"] in {"0", "auto"}, f"{path.relative_to(ROOT)}: {line[0].strip()}"


def test_sizes_are_those_of_the_package_and_its_pins() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert pins["ray"] == SIZES["ray"]
    assert SIZES["image"].endswith(f":{__version__}")
    assert f"-t {SIZES['image']} " in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configurations_load_and_fit_their_cluster(path: Path) -> None:
    config = load_config(str(path)).config
    gpus = (
        0
        if path.parent == ROOT or "dev" in path.parts
        else SIZES["encode"]["max_nodes"] * SIZES["encode"]["gpus"]
    )
    for plane in (config.preprocess, config.embed):
        assert plane.encoder_gpus * (plane.num_encoders or 0) == gpus
    assert config.train.use_gpu == bool(gpus) and config.train.num_workers <= max(gpus, 1)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_are_valid_by_the_schema_in_the_ray_wheel(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read_yaml(f"{name}.yaml")
    validate_config(prepare_config(config))
    commands = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=token ray start" in command
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert config["idle_timeout_minutes"] == SIZES["idle_timeout_minutes"]


@pytest.mark.parametrize(("name", "machine"), [("aws", "InstanceType"), ("gcp", "machineType")])
def test_cloud_groups_have_the_sizes(name: str, machine: str) -> None:
    config = read_yaml(f"{name}.yaml")
    groups = config["available_node_types"]
    assert set(groups) == {"head", "decode", "encode"} and groups["head"]["resources"] == {"CPU": 0}
    for group, sizes in ((group, SIZES[group]) for group in groups):
        assert groups[group]["node_config"][machine] == sizes[name]
        if group == "head":
            continue
        assert groups[group]["min_workers"] == sizes["min_nodes"]
        assert groups[group]["max_workers"] == sizes["max_nodes"]
        gpus = {"GPU": sizes["gpus"]} if "gpus" in sizes else {}
        assert groups[group]["resources"] == {"CPU": sizes["cpus"]} | gpus
        assert "spot" in str(groups[group]["node_config"]).lower()
    assert config["max_workers"] == SIZES["decode"]["max_nodes"] + SIZES["encode"]["max_nodes"]


def test_nodes_of_the_image_start_as_a_ray_of_our_own_does() -> None:
    """Niceness and idle time are the node's, not the driver's: measured settings must be in the image."""
    lines = re.sub(r"\\\n", "", (CLUSTER / "Dockerfile").read_text()).splitlines()
    words = {word for line in lines if line.startswith("ENV") for word in line.split()[1:]}
    assert {f"{name}={value}" for name, value in RAY_ENVIRONMENT.items()} <= words


def test_a_machine_of_ones_own_is_listed_for_every_worker() -> None:
    config = read_yaml("onprem.yaml")
    assert len(config["provider"]["worker_ips"]) == config["max_workers"]


def test_the_image_is_pinned_unprivileged_and_holds_no_secret() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    words = [line for line in lines if not line.startswith("#")]
    assert all(":" in line.split()[1] for line in words if line.startswith("FROM"))
    assert [line for line in words if line.startswith(("USER", "ENTRYPOINT"))] == ["USER 1000:1000"]
    assert words[-1].startswith("USER")
    for line in words:
        if "pip install" in line:
            assert "-c constraints.txt" in line or "--no-deps" in line, line
        assert not re.search(
            r"(?i)(secret|token|password|_key)\s*=(?!token)", line.replace("RAY_AUTH_MODE=", "")
        )
        assert not line.startswith("ADD")
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for line in words:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists() and any(
                    source == kept[1:] or source.startswith(f"{kept[1:]}/")
                    for kept in ignored
                    if kept[0] == "!"
                ), source
