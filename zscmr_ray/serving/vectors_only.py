"""The encoder of an index whose vectors another program made: there is none, and each question for one is refused.

Queries by `vector` and by `id` need no encoder and work as ever. What it is not: a fallback for a model that is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from zscmr_ray.models.base import VectorBlock
from zscmr_ray.schema import FOREIGN_MODEL
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.searcher import Searcher


class VectorsOnly:
    """A serving `Encoder` without a model: what it knows, it knows from the index."""

    label_weight = 0.0

    def __init__(self, searcher: Searcher) -> None:
        self.fingerprint = searcher.fingerprint
        self.blocks: tuple[VectorBlock, ...] = searcher.blocks
        self._model = str(searcher.info["model"]).removeprefix(FOREIGN_MODEL)

    def clean(self, text: str) -> str:
        """Refuse: ProblemError 422."""
        self._refuse("text")

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Refuse: ProblemError 422."""
        self._refuse("picture")

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Refuse: ProblemError 422."""
        self._refuse("text")

    def encode_images(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Refuse: ProblemError 422."""
        self._refuse("picture")

    def _refuse(self, what: str) -> NoReturn:
        raise ProblemError(
            422,
            f"this index cannot be asked with a {what}",
            got=f"vectors of {self._model}, made by another program and imported",
            expected="query.vector or query.id",
            remedy="convert them again with --model-name hf:<id>, if they are of that very model",
        )
