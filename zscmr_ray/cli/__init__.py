"""The command line `zscmr <verb>`, the demo, and what jobs/ run: the only place, with tests, that starts Ray."""
