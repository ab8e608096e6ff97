"""Where a run reads and writes: can the place be written, and do the first rows of the first shards become items?"""

from __future__ import annotations

import itertools
import os
import uuid
from collections import Counter

from zscmr_ray.config import Config, DataSection
from zscmr_ray.data.decode import decode_image
from zscmr_ray.data.records import Record, Reject, RowRejected
from zscmr_ray.errors import ConfigError, DataError, ZscmrError
from zscmr_ray.schema import RejectCode
from zscmr_ray.stages.doctor.finding import FAILED, OK, WARNING, Finding, failed_by
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.shards.inputs import find_input, find_shards
from zscmr_ray.stages.shards.source import admitted
from zscmr_ray.storage import Store

_PROBE = "_doctor"
_NUM_SHARDS, _NUM_ROWS = 3, 16


def check_storage(uri: str) -> list[Finding]:
    """Write, read, list and delete a small object below a directory; the usual AWS variables are the credentials."""
    check, store = "storage", Store(uri)
    key, data = f"{_PROBE}/{uuid.uuid4().hex}", os.urandom(64)
    try:
        store.write_bytes(key, data)
        read, listed = store.read_bytes(key), [info.key for info in store.list(_PROBE)]
        store.delete_tree(_PROBE)
    except ZscmrError as error:
        return [failed_by(check, error)]
    except OSError as error:
        said = f"{store.uri} cannot be written: {error.strerror or error}"
        return [Finding(check, FAILED, said, "another --run, or permission to write there")]
    if read != data or key not in listed:
        said = f"{store.uri} does not give back what was written"
        return [Finding(check, FAILED, said, "an S3 service or file system that is consistent after a write")]
    where = store.uri if store.is_local else f"{store.uri} ({_credentials()})"
    return [Finding(check, OK, f"written, read, listed and deleted at {where}")]


def check_shards(config: Config) -> list[Finding]:
    """Read the first rows of the first shards with the readers and the decoder of a run."""
    data = config.data
    try:
        store, files = find_input(data.input_uri)
        shards = find_shards(files, data)
    except (ConfigError, DataError) as error:
        return [failed_by("input", error)]
    size_gb = sum(shard.size_bytes for shard in shards) / 1e9
    findings = [Finding("input", OK, f"{len(shards):,} shards, {size_gb:,.2f} GB at {store.uri}")]
    return findings + [_check_shard(store, data, shard) for shard in shards[:_NUM_SHARDS]]


def _check_shard(store: Store, data: DataSection, shard: Shard) -> Finding:
    check, with_images = f"shard {shard.key}", data.modality != "text"
    num_rows, rejects = 0, []
    try:
        # Entries and not chunks: a chunk of a shard that gives no item is all of it.
        for entry in itertools.islice(admitted(store, data, shard, with_images=with_images), _NUM_ROWS):
            num_rows += 1
            found = entry if isinstance(entry, Reject) else _decode(entry[0], data) if with_images else None
            if found is not None:
                rejects.append(found)
    except DataError as error:
        return failed_by(check, error)
    if not num_rows:
        return Finding(check, WARNING, "no row in it", "leave it out, or see that it was written to its end")
    if not rejects:
        return Finding(check, OK, f"the first {num_rows} rows are items")
    codes = ", ".join(f"{count} {code}" for code, count in Counter(one.code.value for one in rejects).items())
    said = f"of the first {num_rows} rows {len(rejects)} would be rejected: {codes} ({rejects[0].reason})"
    remedy = (
        "--set data.columns.caption=<column> and so on when columns have other names; else repair the rows"
    )
    return Finding(check, FAILED if len(rejects) == num_rows else WARNING, said, remedy)


def _decode(record: Record, data: DataSection) -> RowRejected | None:
    """Why a run would reject the row's image; None when it would not. Any model's size will do."""
    try:
        if record.image is None:
            raise RowRejected(RejectCode.MISSING_IMAGE, "no image in this row")
        decode_image(
            record.image,
            size_px=224,
            crop_fraction=0.875,
            interpolation="bicubic",
            max_pixels=data.max_pixels,
            thumbnail_px=None,
        )
    except RowRejected as reason:
        return reason
    return None


def _credentials() -> str:
    """Where the credentials come from, never what they are."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return "key from AWS_ACCESS_KEY_ID"
    profile = os.environ.get("AWS_PROFILE")
    return f"profile {profile}" if profile else "credentials of the machine or of ~/.aws"
