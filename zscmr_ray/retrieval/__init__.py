"""Scores, metrics, chance levels, intervals and the zero-shot protocol, on arrays alone.

What it is: floor 1 mathematics in numpy. What it is not: a stage (no files, no models, no Ray).
"""
