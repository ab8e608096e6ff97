"""Run the preprocess stage as a Ray job, with the options of `zscmr preprocess`.

ray job submit --working-dir . -- python jobs/preprocess.py --config ray_config.yaml
"""

from __future__ import annotations

from zscmr_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("preprocess")
