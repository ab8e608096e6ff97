"""Records and rejections: ids, and travelling between processes."""

from __future__ import annotations

import pickle

from zscmr_ray.data.records import Record, RowRejected, ShardSpec
from zscmr_ray.schema import RejectCode


def test_the_id_is_the_explicit_one_else_shard_and_key() -> None:
    record = Record("cats/1", 0, None, (), (), None, None)
    assert record.item_id("a.tar") == "a.tar#cats/1"
    assert Record("1", 0, None, (), (), None, "sku7").item_id("a.tar") == "sku7"


def test_specs_and_rejections_travel_between_processes() -> None:
    spec = ShardSpec("a", 3, "v", "folder", ("a/1.png",))
    rejected = pickle.loads(pickle.dumps(RowRejected(RejectCode.BAD_ID, "why")))
    assert pickle.loads(pickle.dumps(spec)) == spec and (rejected.code, rejected.reason) == (
        RejectCode.BAD_ID,
        "why",
    )
