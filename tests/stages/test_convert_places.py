"""Conversions on S3, after a kill, beside another driver, and in memory that does not grow with the corpus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.clip_layout import exported, rows_of, write_foreign
from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.tiny_duals import write_clip
from zscmr_ray.errors import RefusedError
from zscmr_ray.lease import take_lease
from zscmr_ray.manifest import read_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.convert import export_clip_retrieval, import_clip_retrieval
from zscmr_ray.stages.convert.exporting import _PartWriter
from zscmr_ray.stages.convert.part_import import PartImport
from zscmr_ray.stages.duplicates import mark_duplicates
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.storage import Store


def _files(store: Store) -> dict[str, bytes]:
    return {
        info.key: store.read_bytes(info.key) for info in store.list() if not info.key.startswith("_lease/")
    }


def test_s3_and_disk_give_the_same_bytes(tmp_path: Path, s3_bucket: str) -> None:
    source, clip = exported(tmp_path)
    remote = Store(f"{s3_bucket}/{tmp_path.name}")
    for info in source.list():
        remote.child("embeddings").write_bytes(info.key, source.read_bytes(info.key))
    export_clip_retrieval(remote.child("embeddings"), remote.child("clip"))
    assert _files(remote.child("clip")) == _files(Store(clip))
    import_clip_retrieval(Store(clip), Store(tmp_path / "back"))
    import_clip_retrieval(remote.child("clip"), remote.child("back"))
    assert _files(remote.child("back")) == _files(Store(tmp_path / "back"))
    mark_duplicates(source, Store(tmp_path / "out"))
    mark_duplicates(remote.child("embeddings"), remote.child("out"))
    assert _files(remote.child("out")) == _files(Store(tmp_path / "out"))


@pytest.mark.usefixtures("inline_plane")
def test_what_embed_writes_goes_there_and_back(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip-model")
    write_tar(tmp_path / "shards/a.tar", good_samples(0, 7))
    write_tar(tmp_path / "shards/b.tar", good_samples(7, 4))
    config = corpus_config(tmp_path, embed={"model": f"hf:{clip}"})
    run_embed(config)
    source, target, back = stage_store(config, "embed"), Store(tmp_path / "clip"), Store(tmp_path / "back")
    export_clip_retrieval(source, target)
    import_clip_retrieval(target, back)
    for side in ("image", "text"):
        before, after = rows_of(source, side), rows_of(back, side)
        assert len(before) >= 11
        for row in (*before, *after):
            row.pop("thumbnail", None)
            row.pop("region_weights", None)
        assert after == before
    manifests = [read_manifest(store) for store in (source, back)]
    assert manifests[0] is not None and manifests[1] is not None
    for name in ("fingerprint", "blocks", "model"):
        assert manifests[0].info[name] == manifests[1].info[name]


class _Killed(BaseException):
    """Ends a conversion where a kill would: nothing catches it."""


@pytest.mark.parametrize("direction", ["export", "import"])
def test_a_killed_conversion_goes_on_with_the_next_part(
    direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, clip = exported(tmp_path)
    writer: type[_PartWriter] | type[PartImport] = _PartWriter if direction == "export" else PartImport
    written: list[object] = []
    whole = writer.write

    def write(self: object) -> object:
        if len(written) == 1:
            raise _Killed
        written.append(whole(self))  # type: ignore[arg-type]
        return written[-1]

    def convert(folder: str) -> Store:
        target = Store(tmp_path / folder)
        if direction == "export":
            export_clip_retrieval(source, target)
        else:
            import_clip_retrieval(Store(clip), target)
        return target

    undisturbed = _files(convert("undisturbed"))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", write)
        with pytest.raises(_Killed):
            convert("killed")
    target = Store(tmp_path / "killed")
    assert read_manifest(target) is None
    first = {info.key: info.version for info in target.list() if "_0." in info.key or "part-" in info.key}
    assert first
    convert("killed")
    assert _files(target) == undisturbed
    assert {info.key: info.version for info in target.list()}.items() >= first.items() - {
        item for item in first.items() if item[0].startswith("_")
    }


def test_a_directory_with_another_driver_is_refused(tmp_path: Path) -> None:
    source, _ = exported(tmp_path)
    target = Store(tmp_path / "busy")
    with take_lease(target, "convert"), pytest.raises(RefusedError, match="driver"):
        export_clip_retrieval(source, target)


_MEASURE = """
import sys, threading
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.convert import export_clip_retrieval, import_clip_retrieval
from zscmr_ray.storage import Store

def anonymous_kib():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

def watch():
    while not ended.wait(0.002):
        peak[0] = max(peak[0], anonymous_kib())

root = Store(sys.argv[1])
import_clip_retrieval(root.child("small"), root.child("small-back"), model_name="m")
export_clip_retrieval(root.child("small-back"), root.child("small-again"))
before, peak, ended = anonymous_kib(), [0], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
import_clip_retrieval(root.child("clip"), root.child("back"), model_name="m")
export_clip_retrieval(root.child("back"), root.child("again"))
ended.set()
thread.join()
print((peak[0] - before) * 1024)
"""


def test_memory_is_batches_and_not_the_corpus(tmp_path: Path) -> None:
    """One part with 92 MB of vectors; ids are held, vectors are not."""
    vectors = np.random.default_rng(0).standard_normal((30_000, 768), np.float32).astype(np.float16)
    write_foreign(tmp_path / "small", [(vectors[:2000], vectors[:2000])])
    write_foreign(tmp_path / "clip", [(vectors, vectors)])
    command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < vectors.nbytes
    again = np.load(tmp_path / "again/img_emb/img_emb_0.npy", mmap_mode="r")
    assert again.shape == vectors.shape
