"""Tests of the shard readers; `shards.py` beside this file writes what they read."""
