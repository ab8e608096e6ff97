"""A training driver of its own, to be killed: `python -m tests.stages.train_process <config as JSON> [Ray address]`."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

from tests.pairs_run import tiny_config, write_pairs
from zscmr_ray.cli.session import exit_code_of, ray_session
from zscmr_ray.config import Config, RaySection
from zscmr_ray.stages.train import run_train


def long_config(run: object, num_epochs: int = 150, **train: object) -> Config:
    """Some hundred small steps, so that there is time to be killed in the middle."""
    return tiny_config(
        run,
        optim={"max_epochs": num_epochs, "validate_every_epochs": 25, "patience_epochs": 1000},
        train={"checkpoint_every_steps": 20} | train,
    )


def parts_of(run: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (run / "pairs").glob("part-*")))


@functools.cache
def trained_run(run: Path) -> Path:
    """An undisturbed training of `long_config`, on the Ray that runs; once a process, whichever tests ask."""
    write_pairs(long_config(run))
    assert not run_train(long_config(run)).skipped
    return run


def main() -> None:
    config = Config.model_validate_json(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="zr", ignore_cleanup_errors=True) as folder:
        section = (
            RaySection(address=sys.argv[2])
            if len(sys.argv) > 2
            else RaySection(num_cpus=2, object_store_bytes=100_000_000, temp_dir=folder)
        )
        with ray_session(section):
            run_train(config)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
