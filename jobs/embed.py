"""Run the embed stage as a Ray job, with the options of `zscmr embed`.

ray job submit --working-dir . -- python jobs/embed.py --config ray_config.yaml
"""

from __future__ import annotations

from zscmr_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("embed")
