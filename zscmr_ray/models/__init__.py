"""The networks: single-device maths only; gathering across ranks, precision and checkpoints belong to engine/."""
