"""What evaluate and ablate share: a model's vectors of the rows that take part, the rows to compare with, and what is said.

    rows.py        the protocol's rows, read and encoded once
    pair_rows.py   methods whose score exists for pairs (IMFA): exact and re-ranked
    baselines.py   CCA, ridge and ConSE on the same rows
    facts.py       the words: method, classes, teacher, selection

The numbers themselves are `retrieval/protocol.py`'s.
"""
