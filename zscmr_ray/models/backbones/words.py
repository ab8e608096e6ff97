"""Text backbones without a network: published word vectors (`words:<file>`) and another backbone's static tokens (`static:`).

`words:` is what FGAN and its peers were fed (word2vec or GloVe, 300-d) under a trained BiGRU; `static:minilm` takes the
token embeddings of a text backbone before its first layer, where no word vectors are at hand. Neither sees context: that is
the trained trunk's work (trunks.py). Reading the files is `word_vectors.py`.

Legend: B batch, L tokens, D channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones.base import TextBackbone, Tokenise, tensors_sha256
from zscmr_ray.models.backbones.word_vectors import read_word_vectors

# A word, with apostrophes and hyphens inside it, or a punctuation mark.
TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
PART = re.compile(r"\w+")
UNKNOWN = 0


class StaticText(TextBackbone):
    """A table of vectors, looked up by token: no context, no position, no marks of the tokenizer."""

    table: Tensor

    def __init__(self, table_ND: Tensor, *, max_tokens: int) -> None:
        super().__init__()
        if max_tokens < 1:
            raise ConfigError("max tokens out of range", got=max_tokens, expected="1 or more")
        self.register_buffer("table", table_ND, persistent=False)
        self.num_channels = table_ND.shape[1]
        self.max_tokens = max_tokens

    def _encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        return F.embedding(ids_BL, self.table)


class WordText(StaticText):
    """Published word vectors. A word is looked up as it stands, in lower case, then by its parts (`T-shirt`: t, shirt).

    Words in none of these forms share one vector, the mean of all; punctuation without a vector of its own is left out.
    """

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        """Read the file; ConfigError or DataError as `read_word_vectors`."""
        found = read_word_vectors(path)
        vectors_ND = torch.from_numpy(found.vectors_ND)
        mean_1D = vectors_ND.double().mean(0, keepdim=True).half()
        super().__init__(torch.cat([mean_1D, vectors_ND]), max_tokens=max_tokens)
        self.id = f"words:{path}"
        self.weights_sha256 = tensors_sha256({"vectors": vectors_ND}, vocabulary=json.dumps(found.words))
        self.trained_on = f"see the origin of {path.name} ({len(found.words)} words)"
        self.places = {word: row for row, word in enumerate(found.words, start=UNKNOWN + 1)}
        self.freeze()

    def count_words(self, captions: Sequence[str]) -> dict[str, int]:
        """Count the words of captions, and those without a vector."""
        ids = [word for caption in captions for word in self._caption_ids(caption)]
        return {"words": len(ids), "words_unknown": ids.count(UNKNOWN)}

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        return [self._caption_ids(caption)[: self.max_tokens] or [UNKNOWN] for caption in captions]

    def _caption_ids(self, caption: str) -> list[int]:
        ids = []
        for token in TOKEN.findall(caption):
            place = self._place(token)
            if place is not None:
                ids.append(place)
            elif token[0].isalnum() or token[0] == "_":
                ids += [self._place(part) or UNKNOWN for part in PART.findall(token)]
        return ids

    def _place(self, word: str) -> int | None:
        place = self.places.get(word)
        return self.places.get(word.lower()) if place is None else place


class StaticTokens(StaticText):
    """The token embeddings of a text backbone before its first layer; its tokenizer's marks are left out."""

    def __init__(self, name: str, table_ND: Tensor, tokenize: Tokenise, *, max_tokens: int) -> None:
        super().__init__(table_ND.detach().clone(), max_tokens=max_tokens)
        self.id = name
        self.tokenize_rows = tokenize
        self.freeze()

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        # An empty caption has no token; row 0, a tokenizer's padding, stands for it.
        return [row[: self.max_tokens] or [0] for row in self.tokenize_rows(captions)]


def load_static(name: str, *, max_tokens: int) -> StaticTokens:
    """Load the static token embeddings of the text backbone `name` (minilm, or hf:<id or folder>), on the CPU.

    Raises ConfigError for a backbone that has none.
    """
    from zscmr_ray.models.backbones import load_text_backbone

    # 8: the backbone itself encodes nothing here, and every one takes so many.
    backbone = load_text_backbone(name, max_tokens=8)
    found = backbone.static_tokens(max_tokens)
    if found is None:
        raise ConfigError(
            f"text backbone {name} has no static token embeddings",
            expected="static:minilm or static:hf:<id or folder>",
        )
    static = StaticTokens(f"static:{name}", *found, max_tokens=max_tokens)
    static.trained_on = backbone.trained_on
    static.weights_sha256 = tensors_sha256({"table": static.table}, backbone=backbone.weights_sha256)
    return static
