"""Is everything there that a run needs? Findings about machine, packages, Ray, storage and shards, each with its remedy.

Nothing is changed but for a probe object that is written and deleted. Rates and times are `zscmr estimate`'s; which
checks run, and the exit code, are the command line's (cli/doctor.py).
"""

from zscmr_ray.stages.doctor.finding import FAILED, OK, WARNING, Finding

__all__ = ["FAILED", "OK", "WARNING", "Finding"]
