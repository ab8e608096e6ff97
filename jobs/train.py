"""Run the train stage as a Ray job, with the options of `zscmr train`.

ray job submit --working-dir . -- python jobs/train.py --config ray_config.yaml
"""

from __future__ import annotations

from zscmr_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("train")
