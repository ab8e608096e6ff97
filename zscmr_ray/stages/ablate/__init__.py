"""The ablation: recipes x class splits x seeds on finished pairs, one table (DESIGN 4, an ablation is a few lines of recipe).

    plan.py      which trials, each with its whole configuration; the presets `core` and `full`
    trial.py     one trial in this process: train, evaluate, a plain record
    run.py       the trials side by side as Ray tasks; finished ones are never redone
    results.py   records of a plan to the table's numbers
    page.py      the table as markdown and as a page

A trial equals `zscmr train` and `zscmr evaluate` with its configuration (test: `tests/stages/test_ablate_trial.py`), in the
bare loop instead of Ray Train and DeepSpeed. Directory: `trials/`, `failed/`, `table.json`, `table.md`, `ablation.html`.
"""

from zscmr_ray.stages.ablate.plan import PRESETS, AblationPlan, make_plan
from zscmr_ray.stages.ablate.run import run_ablate

__all__ = ["PRESETS", "AblationPlan", "make_plan", "run_ablate"]
