"""Segments of an index: appended, sharded, deleted from, compacted; the answers of one index over the same rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.embeddings_run import item_ids, run_config, write_embeddings
from zscmr_ray.claim import Update
from zscmr_ray.config import Config, IndexSection
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import read_manifest, require_manifest, write_manifest
from zscmr_ray.retrieval import index_kind, ivf
from zscmr_ray.retrieval.index_kind import choose_index
from zscmr_ray.retrieval.side_index import SideIndex
from zscmr_ray.serving.searcher import Searcher, SearchTask
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import compact_index, delete_rows, needs_ray, run_index
from zscmr_ray.stages.index.opening import open_sides
from zscmr_ray.stages.verify import verify_run


@contextlib.contextmanager
def opened(config: Config):  # type: ignore[no-untyped-def]
    store = stage_store(config, "index")
    with contextlib.ExitStack() as scratch:
        yield open_sides(store, require_manifest(store, "index"), scratch)


def answers(config: Config, *, k: int = 8, gone: Sequence[str] = ()) -> list[list[tuple[str, float]]]:
    """What texts and images find on both sides, by id and score."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((5, 10)).astype(np.float32)
    found = []
    with opened(config) as sides:
        for index in sides.values():
            hits = index.search(queries, k=k)
            found += [
                [(index.id_of(row), float(score)) for row, score in zip(rows, scores, strict=True)]
                for rows, scores in zip(hits.rows_QK.tolist(), hits.scores_QK.tolist(), strict=True)
            ]
    assert not {name for row in found for name, _ in row} & set(gone)
    return found


def sharded(config: Config, rows: int) -> Config:
    return config.model_copy(update={"index": IndexSection(shard_rows=rows)})


def only_first_parts(config: Config) -> None:
    """Take the second part of both sides out of the manifest, as if it had not been embedded yet."""
    store = stage_store(config, "embed")
    manifest = read_manifest(store)
    assert manifest is not None
    kept = [part for part in manifest.parts if part.name.endswith("0.parquet")]
    write_manifest(store, manifest.model_copy(update={"parts": kept}))


def test_appended_segments_answer_as_one_index_and_old_files_stay(tmp_path: Path) -> None:
    one, two = run_config(tmp_path / "one"), run_config(tmp_path / "two")
    for config in (one, two):
        write_embeddings(config, num_items=24)
    run_index(one)
    only_first_parts(two)
    assert run_index(two).counts == {"image": 12, "text": 24}
    with opened(two) as before:
        write_embeddings(two, num_items=24)
        with pytest.raises(RefusedError, match="--append if shards were embedded since"):
            run_index(two)
        files = {path: path.read_bytes() for path in (tmp_path / "two" / "index" / "image").glob("*")}
        assert run_index(two, update=Update.APPEND).counts == {"image": 24, "text": 48}
        # Who had it open goes on with its version.
        assert before["image"].num_rows == 12
    assert all(path.read_bytes() == data for path, data in files.items() if path.is_file())
    assert (tmp_path / "two" / "index" / "image" / "segment-00001" / "vectors.npy").exists()
    assert answers(two) == answers(one)
    assert run_index(two, update=Update.APPEND).skipped
    assert not [text for report in verify_run(str(tmp_path / "two" / "index")) for text in report.violations]
    with opened(two) as sides:
        row = sides["image"].row_of(item_ids(24)[3])
        assert row is not None and sides["image"].captions_of(row) == (
            "caption 0 of item 3",
            "caption 1 of item 3",
        )
        weights = sides["image"].regions.weights_NR
        assert weights is not None and weights.shape == (24, 4) and weights[row].tolist() == [0.25] * 4


def test_a_changed_part_cannot_be_appended_to_and_an_id_in_two_segments_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, ids=["a", "b", "c", "a"], sides=["image"])
    only_first_parts(config)
    run_index(config)
    write_embeddings(config, ids=["a", "b", "c", "a"], sides=["image"])
    with pytest.raises(DataError, match="segments 1 and 0"):
        run_index(config, update=Update.APPEND)
    # The old one deleted, the new one may come.
    only_first_parts(config)
    delete_rows(config, ["a"])
    write_embeddings(config, ids=["a", "b", "c", "a"], sides=["image"])
    assert run_index(config, update=Update.APPEND).counts == {"image": 3, "text": 0}
    write_embeddings(config, num_items=5)
    with pytest.raises(RefusedError, match="changed or removed"):
        run_index(config, update=Update.APPEND)


def test_deleted_items_go_with_their_captions_and_stay_gone_when_compacted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, num_items=24)
    version = run_index(config).info["index_version"]
    gone = item_ids(24)[4]
    caption = f"{item_ids(24)[5]}#1"
    with pytest.raises(DataError, match=r"1 of 2: nobody"):
        delete_rows(config, [gone, "nobody"])
    result = delete_rows(config, [gone, caption])
    assert result.counts == {"image": 23, "text": 45} and result.info["index_version"] != version
    assert delete_rows(config, [gone]).skipped
    names = [gone, caption, f"{gone}#0", f"{gone}#1"]
    before = answers(config, gone=names)
    searcher = Searcher(stage_store(config, "index"))
    assert searcher.item(gone) is None and searcher.vector_of(caption) is None
    task = SearchTask(np.ones(10, np.float32), "image", 23, (("id", (gone,)),))
    assert searcher.search([task])[0].notes == ("0 of 23: only 0 rows meet the filter",)
    searcher.check_k("image", 23)
    with pytest.raises(DataError, match="at most 23"):
        searcher.check_k("image", 24)
    compacted = compact_index(config)
    assert compacted.counts == {"image": 23, "text": 45} and answers(config, gone=names) == before
    assert [path.name for path in (tmp_path / "index" / "image").iterdir()] == ["segment-00001"]
    assert compact_index(config).skipped
    # A wholly deleted side has no rows to find.
    delete_rows(config, item_ids(24)[:4] + item_ids(24)[5:])
    with opened(config) as sides:
        assert sides["image"].num_rows == 0 and sides["text"].num_rows == 0
    assert run_index(config, overwrite=True).counts == {"image": 24, "text": 48}
    assert "index: 72 deleted rows are back" in capsys.readouterr().err
    delete_rows(config, [gone])
    only_first_parts(config)
    run_index(config, overwrite=True)
    assert "index: 3 rows were deleted from the index before" in capsys.readouterr().err
    run_index(config, overwrite=True)
    assert "deleted" not in capsys.readouterr().err


def test_ids_decide_ties_between_segments(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    vectors = np.tile(np.float16([1, 0, 0, 0, 0, 0, 1, 0, 0, 0]), (8, 1))
    write_embeddings(config, ids=list("hgfedcba"), sides=["image"], vectors={"image": vectors})
    only_first_parts(config)
    run_index(config)
    write_embeddings(config, ids=list("hgfedcba"), sides=["image"], vectors={"image": vectors})
    run_index(config, update=Update.APPEND)
    with opened(config) as sides:
        index: SideIndex = sides["image"]
        rows = index.search(vectors[:1].astype(np.float32), k=5).rows_QK[0]
        assert [index.id_of(int(row)) for row in rows] == list("abcde")


def test_inverted_lists_are_tuned_measured_and_refused_when_they_find_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ivf, index_kind):
        monkeypatch.setattr(module, "EXACT_ROWS", 16)
    config = run_config(tmp_path).model_copy(update={"index": IndexSection(kind="ivf", target_recall=1.0)})
    write_embeddings(config, num_items=200)
    result = run_index(config)
    segment = result.info["segments"][0]
    assert result.info["kind"] == "ivf" and segment["kinds"]["image"]["quantizer"] == "sq8"
    assert set(segment["recall_at_10"]["text->image"]) == {"0", "0.5", "1"}
    assert result.info["recall_at_10"]["text->image"] == min(segment["recall_at_10"]["text->image"].values())
    searcher = Searcher(stage_store(config, "index"))
    assert searcher.gallery("image").segments[0].index.vectors_ND.dtype == np.float16
    query = searcher.vector_of(item_ids(200)[7])
    assert query is not None
    outcome = searcher.search([SearchTask(query, "image", 3, asked="image")])[0]
    assert outcome.hits[0].id == item_ids(200)[7]
    low = config.model_copy(update={"index": IndexSection(kind="ivf", target_recall=0.01, min_recall=0.999)})
    with pytest.raises(RefusedError, match="too few of the true neighbours"):
        run_index(low, overwrite=True)


def test_bounds_choose_the_kind() -> None:
    bounds = {"kind": "auto", "quantizer": "auto", "max_memory_bytes": 100 << 20, "max_latency_ms": 5.0}
    assert choose_index(10_000, 512, **bounds).kind == "flat"  # type: ignore[arg-type]
    assert choose_index(100_000, 512, **bounds).quantizer == "sq8"  # type: ignore[arg-type]
    assert choose_index(300_000, 512, **bounds).quantizer == "pq"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"index\.max_memory_bytes"):
        choose_index(10**7, 512, **bounds)  # type: ignore[arg-type]
    # Named kinds stand, whatever the bounds; a few thousand rows need no lists.
    assert choose_index(10**7, 512, **bounds | {"kind": "flat"}).kind == "flat"  # type: ignore[arg-type]
    assert choose_index(10**7, 512, **bounds | {"kind": "ivf"}).quantizer == "pq"  # type: ignore[arg-type]
    assert choose_index(4000, 512, **bounds | {"kind": "ivf"}).kind == "flat"  # type: ignore[arg-type]


def test_segments_as_ray_tasks_are_the_segments_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which process builds a segment is not in it; a killed build goes on behind its finished segments."""
    from zscmr_ray.stages.index import run
    from zscmr_ray.stages.index.segment import SegmentJob, build_segment

    one, two = run_config(tmp_path / "one"), sharded(run_config(tmp_path / "two"), 30)
    for config in (one, two):
        write_embeddings(config, num_items=24)
    run_index(one)
    assert needs_ray(two) and not needs_ray(one)
    built: list[int] = []

    def in_process(jobs: Sequence[SegmentJob]):  # type: ignore[no-untyped-def]
        for job in jobs:
            if len(built) == 1:
                raise KeyboardInterrupt
            built.append(job.number)
            yield job, build_segment(job, quiet=True)

    monkeypatch.setattr(run, "_outcomes", in_process)
    with pytest.raises(KeyboardInterrupt):
        run_index(two)
    assert read_manifest(stage_store(two, "index")) is None
    built.append(-1)
    assert run_index(two).counts == {"image": 24, "text": 48}
    assert built == [0, -1, 1]
    assert answers(two) == answers(one)
    assert not (tmp_path / "two" / "index" / "_segments").exists()
