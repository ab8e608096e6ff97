"""The tar parser: every way an archive is written, and every way it is damaged."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.readers.shards import tar_bytes
from zscmr_ray.data.readers.tar import TarStream
from zscmr_ray.errors import DataError

_FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
_MEMBERS = st.lists(
    st.tuples(
        st.text(st.sampled_from("ab/é."), min_size=1, max_size=60).map(lambda name: "x" + name.rstrip("/")),
        st.binary(max_size=1200),
    ),
    max_size=6,
)


def contents(data: bytes) -> list[tuple[str, bytes]]:
    stream = TarStream(io.BytesIO(data), where="shard a.tar")
    return [(member.name, stream.read()) for member in stream]


@settings(max_examples=150, deadline=None)
@given(members=_MEMBERS, tar_format=_FORMATS)
def test_reads_what_tarfile_writes(members: list[tuple[str, bytes]], tar_format: int) -> None:
    assert contents(tar_bytes(members, tar_format=tar_format)) == members


@settings(max_examples=300, deadline=None)
@given(members=_MEMBERS, tar_format=_FORMATS, data=st.data())
def test_a_cut_archive_is_an_error_or_whole(
    members: list[tuple[str, bytes]], tar_format: int, data: st.DataObject
) -> None:
    archive = tar_bytes(members, tar_format=tar_format)
    cut = data.draw(st.integers(0, len(archive)))
    try:
        found = contents(archive[:cut])
    except DataError as error:
        assert "truncated" in str(error) and "shard a.tar" in str(error)
        return
    assert found == members


@settings(max_examples=300, deadline=None)
@given(members=_MEMBERS, data=st.data())
def test_a_flipped_byte_never_loses_a_member_silently(
    members: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    archive = bytearray(tar_bytes(members, tar_format=tarfile.USTAR_FORMAT))
    place = data.draw(st.integers(0, len(archive) - 1))
    archive[place] ^= data.draw(st.integers(1, 255))
    try:
        found = contents(bytes(archive))
    except DataError:
        return
    assert [name for name, _ in found] == [name for name, _ in members]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_more_than_100_bytes(tar_format: int) -> None:
    name = "folder/" * 40 + "photo.jpg"
    assert contents(tar_bytes([(name, b"1")], tar_format=tar_format)) == [(name, b"1")]


def test_unread_members_are_skipped() -> None:
    big = bytes(3 << 20)
    archive = tar_bytes([("a.jpg", big), ("b.jpg", b"1"), ("c.jpg", big)])
    names = [(member.name, member.size_bytes) for member in TarStream(io.BytesIO(archive), where="t")]
    assert names == [("a.jpg", len(big)), ("b.jpg", 1), ("c.jpg", len(big))]


def test_a_large_member_cut_short_is_noticed_when_it_is_skipped() -> None:
    archive = tar_bytes([("a.jpg", bytes(3 << 20))])
    with pytest.raises(DataError, match="truncated"):
        list(TarStream(io.BytesIO(archive[: 2 << 20]), where="t"))


def test_a_raw_stream_may_give_a_few_bytes_at_a_time() -> None:
    class Drip(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size if size is not None and size >= 0 else 7, 7))

    archive = tar_bytes([("a.txt", b"x" * 700), ("b.txt", b"y")])
    stream = TarStream(Drip(archive), where="t")
    assert [(member.name, stream.read()) for member in stream] == [("a.txt", b"x" * 700), ("b.txt", b"y")]


def test_directories_have_no_contents_and_links_say_so() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("d/a.jpg", tarfile.SYMTYPE),
            ("d/b.jpg", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            archive.addfile(info)
    members = list(TarStream(io.BytesIO(buffer.getvalue()), where="t"))
    assert [(m.name, m.problem) for m in members] == [
        ("d/a.jpg", "a symbolic link"),
        ("d/b.jpg", "a hard link"),
    ]


def test_concatenated_archives_are_refused() -> None:
    archive = tar_bytes([("a.txt", b"1")])
    with pytest.raises(DataError, match="after the end of the archive"):
        contents(archive + archive)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(600), bytes(100), b"<html>" * 200])
def test_what_is_no_tar_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"truncated|header"):
        contents(data)


def test_sparse_files_are_refused_by_name() -> None:
    archive = bytearray(tar_bytes([("a.jpg", b"1")], tar_format=tarfile.GNU_FORMAT))
    archive[156:157] = b"S"
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    with pytest.raises(DataError, match="sparse"):
        contents(bytes(archive))


@pytest.mark.parametrize(
    "record", [b"12 path", b"99999 path=x\n", b"x path=y\n", b"9 path=a", b"9" * 5000 + b" a=b\n"]
)
def test_a_pax_header_that_does_not_parse(record: bytes) -> None:
    archive = bytearray(
        tar_bytes([("h", record.ljust(40)), ("a.txt", b"1")], tar_format=tarfile.USTAR_FORMAT)
    )
    archive[156:157] = b"x"
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    with pytest.raises(DataError, match="pax"):
        contents(bytes(archive))


def test_sizes_in_base_256() -> None:
    archive = bytearray(tar_bytes([("a.txt", b"12345")], tar_format=tarfile.GNU_FORMAT))
    archive[124:136] = b"\x80" + (5).to_bytes(11, "big")
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    assert contents(bytes(archive)) == [("a.txt", b"12345")]
