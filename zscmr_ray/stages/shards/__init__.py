"""Raw shards as rows, for the stages that read them (preprocess, and embed without pairs): which files are meant
(`inputs`), rows decoded on CPU (`source`), classes bounded (`cap`). No torch. Not the formats: those are data/readers.
"""
