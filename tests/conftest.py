"""What several tests share: one small Ray per module, the optional shared data, and quiet, bounded threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any library reads them: the suite runs on two cores beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

from tests.own_ray import own_ray
from tests.s3_server import s3_bucket, s3_server  # noqa: F401  fixtures
from zscmr_ray.cli.session import prepare_environment
from zscmr_ray.config import Config

prepare_environment()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real image-text data beside the checkout; tests that want it are skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not present at {folder}")
    return folder


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A Ray of this module's own on two logical CPUs, stopped (only it) at the module's end."""
    with own_ray(num_cpus=2, object_store_bytes=300_000_000):
        yield


@pytest.fixture
def default_config() -> Config:
    """The configuration with nothing set."""
    return Config()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`make test`) one has all tests that start a Ray: two Rays at once slow each other down."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


_EXIT_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep pytest's own verdict for the exit below."""
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End with pytest's verdict, without tearing the interpreter down.

    After a dozen Rays in one process, one whole run of two ended in a segmentation fault of native threads in the
    teardown, with every test passed and reported (docs/decisions.md).
    """
    if "ray" in sys.modules and _EXIT_STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_EXIT_STATUS])
