"""One side of an index on disk: filters, degenerate sides and torn files. Order and captions: test_index.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.embeddings_run import item_ids, run_config, write_embeddings
from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.gallery import FILES, Gallery
from zscmr_ray.retrieval.gallery_write import write_gallery
from zscmr_ray.stages.index import run_index


def image_table(ids: list[str], *, dimension: int = 3) -> pa.Table:
    flat = pa.array(np.arange(len(ids) * dimension, dtype=np.float16))
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
            "thumbnail": pa.array([id_.encode() if id_ > "b" else None for id_ in ids], pa.binary()),
            "labels": pa.array([[] for _ in ids], pa.list_(pa.string())),
        }
    )


def test_filters_accept_any_value_of_a_column_and_all_columns_together(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config)
    run_index(config)
    gallery = Gallery(tmp_path / "index" / "image")
    assert gallery.mask({}) is None

    def ids(mask: object) -> set[str]:
        return {gallery.id_of(int(row)) for row in np.flatnonzero(mask)}  # type: ignore[call-overload]

    numbered = item_ids(12)
    assert ids(gallery.mask({"labels": ["red", "any"]})) == {
        numbered[n] for n in range(12) if n % 3 == 0 or n % 4 == 0
    }
    assert ids(gallery.mask({"labels": ["red"], "id": [numbered[0], numbered[1]]})) == {numbered[0]}
    assert ids(gallery.mask({"labels": ["mauve"]})) == set()
    with pytest.raises(DataError, match="no such filter column"):
        gallery.mask({"price": ["1"]})


def test_rows_of_several_tables_are_sorted_with_what_belongs_to_them(tmp_path: Path) -> None:
    tables = [image_table(["d", "a"]), image_table([]), image_table(["c", "b"])]
    assert write_gallery(tmp_path, tables, dimension=3, captions={"c": ["see"]}) == 4
    gallery = Gallery(tmp_path)
    assert [gallery.id_of(row) for row in range(4)] == ["a", "b", "c", "d"]
    assert gallery.index.vectors_ND[:, 0].tolist() == [3, 3, 0, 0]
    assert [gallery.thumbnail_of(row) for row in range(4)] == [None, None, b"c", b"d"]
    assert [gallery.has_thumbnail(row) for row in range(4)] == [False, False, True, True]
    assert [gallery.captions_of(row) for row in range(4)] == [(), (), ("see",), ()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_row_without_labels_meets_no_label_filter(tmp_path: Path) -> None:
    write_gallery(tmp_path, [image_table(["a", "b"])], dimension=3)
    mask = Gallery(tmp_path).mask({"labels": ["x"]})
    assert mask is not None
    assert mask.tolist() == [False, False]


def test_vectors_of_another_length_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another shape"):
        write_gallery(tmp_path, [image_table(["a"], dimension=4)], dimension=3)
    with pytest.raises(DataError, match="2 of them: a, b"):
        write_gallery(tmp_path, [image_table(["a", "b", "c"]), image_table(["b", "a"])], dimension=3)


def test_a_torn_items_file_and_one_of_another_gallery_are_named(tmp_path: Path) -> None:
    write_gallery(tmp_path / "two", [image_table(["a", "b"])], dimension=3)
    write_gallery(tmp_path / "one", [image_table(["a"])], dimension=3)
    items = tmp_path / "two" / "items.arrow"
    items.write_bytes((tmp_path / "one" / "items.arrow").read_bytes())
    with pytest.raises(DataError, match="2 vectors, 1 items"):
        Gallery(tmp_path / "two")
    items.write_bytes(items.read_bytes()[:50])
    with pytest.raises(DataError, match=r"items\.arrow"):
        Gallery(tmp_path / "two")
