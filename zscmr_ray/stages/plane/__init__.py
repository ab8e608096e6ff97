"""The chunk and commit machinery that preprocess and embed share (DESIGN 2): exactly-once parts through Ray Data.

`chunks` what flows, `staging` what is written meanwhile, `decode` and `encode` the two map steps, `commit` how a
shard becomes a part, `directory` a stage from claim to manifest, `update` what an append or retry does, `run` the
driver, `on_ray` what it runs on, `resources` how wide; `effort`, `ledger` and `bottleneck` what it cost, `probe` and
`forecast` what it would. No torch but in `encode`, no ray but in `on_ray`.
"""
