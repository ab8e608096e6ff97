"""A training driver of its own, to be killed: `python -m tests.stages.train_process <run folder>`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.pairs_run import tiny_config
from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config, RaySection
from zscmr_ray.stages.train import run_train


def long_config(run: Path, num_epochs: int = 150) -> Config:
    """Some hundred small steps, so that there is time to be killed in the middle."""
    return tiny_config(
        run,
        optim={"max_epochs": num_epochs, "validate_every_epochs": 25, "patience_epochs": 1000},
        train={"checkpoint_every_steps": 20},
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="zr", ignore_cleanup_errors=True) as folder:
        section = RaySection(num_cpus=2, object_store_bytes=100_000_000, temp_dir=folder)
        with ray_session(section):
            run_train(long_config(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
