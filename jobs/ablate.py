"""Run an ablation as a Ray job, with the options of `zscmr ablate`.

ray job submit --working-dir . -- python jobs/ablate.py --preset core --pairs demo=s3://bucket/demo/pairs --run s3://bucket/core
"""

from __future__ import annotations

from zscmr_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("ablate")
