"""WebDataset tar shards: adjacent members with the same key are one sample (`a/1.jpg`, `a/1.txt`, `a/1.json`).

Key and extension are WebDataset's: the extension is everything after the first dot of the base name, directories
belong to the key. A key that comes back after another one is an error, not two half samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from zscmr_ray.data.readers.fields import MAX_TEXT_BYTES, decode_text, detect, missing_column, parse_object
from zscmr_ray.data.readers.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, checked
from zscmr_ray.data.readers.quoting import listed, shown
from zscmr_ray.data.readers.rows import Cells, RowBuilder
from zscmr_ray.data.readers.streams import open_stream
from zscmr_ray.data.readers.tar import TarMember, TarStream
from zscmr_ray.data.records import NOT_READ, Columns, OpenFile, Record, Reject, RowRejected, ShardSpec
from zscmr_ray.errors import DataError
from zscmr_ray.schema import RejectCode

_IMAGE_EXTENSIONS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
# What one sample may hold in memory: pictures of a dozen views, all but one of them unused.
_MAX_SAMPLE_BYTES = 2 * MAX_IMAGE_BYTES
_NAMED = ("id", "image", "caption", "label", "partition")


@dataclass(slots=True)
class _Sample:
    """The members of one key, by extension; None stands for contents that were not asked for."""

    key: str
    offset: int
    position: int
    members: dict[str, bytes | None] = field(default_factory=dict)
    problem: str | None = None
    num_bytes: int = 0


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and lower-case extension of a member, None for one that belongs to no sample (hidden, no dot).

    >>> split_name("./cats/001.seg.PNG")
    ('cats/001', 'seg.png')
    """
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension:
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def read_webdataset(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    builder: RowBuilder,
    *,
    keep: frozenset[int] | None,
    with_images: bool,
) -> Iterator[Record | Reject]:
    """Yield the samples of a tar shard in archive order; raises DataError for an unsorted or damaged archive."""
    reader = _SampleReader(f"shard {spec.key}", columns, keep=keep, with_images=with_images)
    with open_stream(spec, open_file) as stream:
        for sample in reader.samples(TarStream(stream, where=f"shard {spec.key}")):
            yield builder.build(sample.key, sample.offset, partial(reader.cells, sample))
    reader.check_columns()


class _SampleReader:
    """Groups members into samples and finds each field in a sample."""

    def __init__(
        self, where: str, columns: Columns, *, keep: frozenset[int] | None, with_images: bool
    ) -> None:
        self._where = where
        self._keep = keep
        self._with_images = with_images
        self._named = {
            name: value for name in _NAMED if (value := getattr(columns, name)) not in {None, NOT_READ}
        }
        self._not_read = {name for name in _NAMED if getattr(columns, name) == NOT_READ}
        self._named_extensions = {value.lower() for value in self._named.values()}
        self._named_image = self._named.get("image", "").lower()
        self._unmet = dict(self._named)
        self._first_names: list[str] = []

    def samples(self, tar: TarStream) -> Iterator[_Sample]:
        """Yield the samples to keep, complete; raises DataError for a key in two places."""
        places: dict[str, int] = {}
        sample: _Sample | None = None
        num_loose = 0
        for member in tar:
            parts = split_name(member.name)
            if parts is None:
                num_loose += 1
                continue
            key, extension = parts
            if sample is None or key != sample.key or extension in sample.members:
                if sample is not None and self._wants(sample):
                    yield sample
                self._check_adjacent(key, member, sample, places)
                places.setdefault(key, member.position)
                sample = _Sample(key, 0 if sample is None else sample.offset + 1, member.position)
            self._add(sample, extension, member, tar)
        if sample is not None and self._wants(sample):
            yield sample
        if sample is None and num_loose:
            raise DataError(
                f"{self._where}: no samples in the archive",
                got=f"{num_loose} members, all hidden or without an extension",
                expected="members named <key>.jpg, <key>.txt, <key>.json ...",
                remedy="name the members so, or remove the shard",
            )

    def cells(self, sample: _Sample) -> Cells:
        """Find a sample's fields: a member where there is one, else the JSON member's field."""
        if sample.problem:
            raise RowRejected(RejectCode.UNREADABLE_RECORD, sample.problem)
        json_data = sample.members.get("json")
        fields = {} if json_data is None else parse_object(json_data, "the .json member")
        if not self._first_names:
            self._first_names = [*sample.members, *fields]
        image_name = self._image_extension(sample)
        return Cells(
            image=lambda: self._image(sample, image_name),
            caption=self._value("caption", "txt", sample, fields),
            label=self._value("label", "cls", sample, fields),
            partition=self._value("partition", None, sample, fields),
            id=self._value("id", None, sample, fields),
        )

    def check_columns(self) -> None:
        """Raise DataError when rows were read and none had a column that was named in the configuration."""
        if self._first_names:
            for name, wanted in self._unmet.items():
                raise missing_column(name, wanted, self._first_names, where=self._where)

    def _wants(self, sample: _Sample) -> bool:
        return self._keep is None or sample.offset in self._keep

    def _check_adjacent(
        self, key: str, member: TarMember, sample: _Sample | None, places: dict[str, int]
    ) -> None:
        if key in places and (sample is None or key != sample.key):
            raise DataError(
                f"{self._where} is not sorted: the members of sample {shown(key)} are not together",
                got=f"{shown(member.name)} at byte {member.position}, the sample's first member at byte {places[key]}",
                expected="all members of a sample one after another",
                remedy="write the archive again with its names sorted (GNU tar: --sort=name)",
            )

    def _add(self, sample: _Sample, extension: str, member: TarMember, tar: TarStream) -> None:
        sample.members[extension] = None
        is_image = _is_image(extension) or extension == self._named_image
        if not self._wants(sample) or not (self._with_images if is_image else self._is_text(extension)):
            return
        max_bytes = MAX_IMAGE_BYTES if is_image else MAX_TEXT_BYTES
        sample.num_bytes += member.size_bytes
        if member.problem:
            sample.problem = f"member {shown(member.name)} is {member.problem}"
        elif member.size_bytes > max_bytes or sample.num_bytes > _MAX_SAMPLE_BYTES:
            sample.problem = f"member {shown(member.name)} has {member.size_bytes} bytes, at most {max_bytes}"
        else:
            sample.members[extension] = tar.read()

    def _is_text(self, extension: str) -> bool:
        return extension in {"txt", "cls", "json"} or extension in self._named_extensions

    def _image_extension(self, sample: _Sample) -> str | None:
        if "image" in self._not_read:
            return None
        if "image" in self._named:
            wanted = self._named["image"].lower()
            if wanted in sample.members:
                self._unmet.pop("image", None)
            return wanted if wanted in sample.members else None
        exact = [name for name in sample.members if name in _IMAGE_EXTENSIONS]
        found = exact or [name for name in sample.members if _is_image(name)]
        if len(found) > 1:
            raise DataError(
                f"{self._where}: which member holds the image is ambiguous",
                got=f"sample {shown(sample.key)} has {listed(found)}",
                expected="one image a sample",
                remedy=f"--set data.columns.image={found[0]} (or another extension)",
            )
        return found[0] if found else None

    def _image(self, sample: _Sample, name: str | None) -> bytes | None:
        data = None if name is None else sample.members[name]
        return None if data is None else checked(data)

    def _value(
        self, field_name: str, member: str | None, sample: _Sample, fields: dict[str, object]
    ) -> object:
        if field_name in self._not_read:
            return None
        wanted = self._named.get(field_name)
        if wanted is not None:
            if wanted.lower() in sample.members or wanted in fields:
                self._unmet.pop(field_name, None)
            member = wanted.lower()
        data = None if member is None else sample.members.get(member)
        if data is not None:
            return decode_text(data, f"the .{member} member")
        name = wanted or (detect(field_name, list(fields), where=self._where) if fields else None)
        return None if name is None else fields.get(name)


def _is_image(extension: str) -> bool:
    return extension in _IMAGE_EXTENSIONS or extension.rpartition(".")[2] in _IMAGE_EXTENSIONS
