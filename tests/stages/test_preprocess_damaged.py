"""One damaged shard of each container beside good ones, and strange rows in a good one, through a real local Ray."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.corpus import corpus_config, good_samples, jpeg
from tests.stages.numbers import RAY_WARNINGS, digests
from zscmr_ray.errors import DataError
from zscmr_ray.schema import part_name
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.preprocess import run_preprocess

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]

Rows = list[dict[str, Any]]


def rows(seed: int) -> Rows:
    return [
        {"id": f"s{seed}-{key}", "image": members["jpg"], "caption": members["txt"].decode()}
        for key, members in good_samples(seed, 5)
    ]


def strange_rows() -> Rows:
    """Paths, ids and captions that cannot be used and must not take their neighbours along."""
    image = jpeg(7)
    return [
        {"id": "s9", "image": image, "caption": "fine"},
        {"id": "line\nend", "image": image, "caption": "the id has a line end"},
        {"id": "s10", "image": image[: len(image) // 2], "caption": "cut short"},
        {"id": "s11", "image": b"GIF89a" + bytes(40), "caption": "no picture"},
        {"id": "x" * 2000, "image": image, "caption": "a long id"},
        {"id": "s12#/%20", "image": image, "caption": "an odd but usable id"},
    ]


def as_tar(values: Rows) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, row in enumerate(values):
            meta = json.dumps({"id": row["id"]}).encode()
            for end, data in (("jpg", row["image"]), ("txt", row["caption"].encode()), ("json", meta)):
                member = tarfile.TarInfo(f"{number:03d}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def as_parquet(values: Rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values), buffer, write_page_checksum=True)
    return buffer.getvalue()


def as_jsonl(values: Rows) -> bytes:
    lines = [json.dumps(row | {"image": base64.b64encode(row["image"]).decode()}) for row in values]
    surrogate = json.dumps({"id": "s13", "image": "caf\udce9/\ud83d.jpg", "caption": "a path of no encoding"})
    return "\n".join([*lines, *([surrogate] if len(values) > 5 else []), ""]).encode()


def as_csv(values: Rows) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "image", "caption"])
    for row in values:
        writer.writerow([row["id"], base64.b64encode(row["image"]).decode(), row["caption"]])
    stray = b's13,"caf\xe9.jpg,a quote that never closes\r\n' if len(values) > 5 else b""
    data = buffer.getvalue().encode()
    head, _, rest = data.partition(b"\r\n")
    return head + b"\r\n" + stray + rest


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged_page(data: bytes) -> bytes:
    return data[:100] + bytes(200) + data[300:]


CODES = {"bad_id": 2, "truncated_image": 2}


@pytest.mark.parametrize(
    ("suffix", "write", "damage", "rejects"),
    [
        ("tar", as_tar, cut, CODES),
        ("parquet", as_parquet, damaged_page, CODES),
        ("jsonl", as_jsonl, lambda data: b"PAR1" + data, CODES | {"bad_path": 1}),
        ("csv", as_csv, lambda data: data + b'"', CODES | {"unreadable_record": 1}),
    ],
)
def test_a_damaged_shard_is_named_and_its_neighbours_are_committed(
    ray_local: None, tmp_path: Path, suffix: str, write: Any, damage: Any, rejects: dict[str, int]
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / f"a.{suffix}").write_bytes(write(rows(1)))
    (folder / f"b.{suffix}").write_bytes(damage(write(rows(2))))
    (folder / f"c.{suffix}").write_bytes(write(strange_rows()))
    config = corpus_config(tmp_path, data={"columns": {"id": "id"}})
    with pytest.raises(DataError, match=rf"1 of 3 shards.*b\.{suffix}") as caught:
        run_preprocess(config)
    assert caught.value.exit_code == 3
    store = stage_store(config, "preprocess")
    parts = {key for key in digests(store) if key.endswith(".parquet")}
    names = {part_name(f"{name}.{suffix}") for name in "ac"}
    assert parts == names | {f"rejected/{part_name(f'c.{suffix}')}"}

    def read(name: str) -> pa.Table:
        return pq.read_table(Path(store.path(name)))

    assert read(part_name(f"a.{suffix}"))["id"].to_pylist() == [row["id"] for row in rows(1)]
    assert sorted(read(part_name(f"c.{suffix}"))["id"].to_pylist()) == ["s12#/%20", "s9"]
    rejected = read(f"rejected/{part_name(f'c.{suffix}')}")
    codes = rejected["code"].to_pylist()
    assert {code: codes.count(code) for code in codes} == rejects
    offsets = [*rejected["offset"].to_pylist(), *read(part_name(f"c.{suffix}"))["source_offset"].to_pylist()]
    assert sorted(offsets) == list(range(len(strange_rows()) + (suffix in {"jsonl", "csv"})))
