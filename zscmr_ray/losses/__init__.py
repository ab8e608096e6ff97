"""The losses: pure functions of the global batch; gathering it across ranks happens outside, in engine/."""
