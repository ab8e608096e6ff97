"""The second stage of a search: IMFA's fused attention over the regions of a shortlist (SCIENCE 3, "(c)+(b)").

What it is: a text and item ids in, the score of each pair out, from the projected regions that the index keeps
(`embed.regions`). The text is encoded here, not handed over: the attention asks with the sentence state, which no stored
vector holds. What it is not: the shortlist (searcher.py), its new order (reranking.py), or a search for captions: of texts
an index keeps vectors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from zscmr_ray.data.captions import clean_captions
from zscmr_ray.engine.vector_model import ModelPlace, load_model
from zscmr_ray.errors import DataError
from zscmr_ray.models.base import SideOutput
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.models.imfa import Inn
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.retrieval.side_index import SideIndex

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shortlist:
    """A text and the items that its first stage found."""

    text: str
    ids: tuple[str, ...]


class Reranker:
    """The fused attention of one checkpoint over one index. Raises as `load_model`, and DataError without regions."""

    def __init__(
        self,
        place: ModelPlace,
        images: Gallery | SideIndex,
        *,
        fingerprint: str | None = None,
        device: str = "cpu",
    ) -> None:
        if images.regions.regions_NRD is None:
            raise DataError(
                "this index keeps no regions to re-rank by",
                got="no image/regions.npy",
                expected="an index of embeddings made with embed.regions=true",
                remedy="zscmr embed --set embed.regions=true --overwrite, and zscmr index --overwrite",
            )
        model, _ = load_model(place, device=device, backbones=("text",), expected=fingerprint)
        assert isinstance(model, DualEncoder) and isinstance(model.model, Inn), (
            "embed keeps regions of IMFA only"
        )
        self._model, self._inn, self._device = model, model.model, device
        self._images, self._regions_NRD = images, images.regions.regions_NRD

    def rerank(self, shortlists: Sequence[Shortlist]) -> list[FloatArray]:
        """Score each text with each of its items, [K] float32 in the order of the ids."""
        _, texts = self._model.encode_texts([clean_captions([s.text])[0] for s in shortlists])
        return [self._scores(shortlist, texts, place) for place, shortlist in enumerate(shortlists)]

    def _scores(self, shortlist: Shortlist, texts: SideOutput, place: int) -> FloatArray:
        rows_K = [self._row(item_id) for item_id in shortlist.ids]
        if not rows_K:
            return np.empty(0, np.float32)
        # In row order: neighbours share pages of the mapped file.
        order_K = np.argsort(rows_K)
        kept_KRD = np.ascontiguousarray(self._regions_NRD[np.asarray(rows_K)[order_K]])
        text = SideOutput.from_loss_tensors(
            {name: value[place : place + 1] for name, value in texts.pair_tensors().items()}
        )
        scores_K = np.empty(len(rows_K), np.float32)
        regions_KRD = torch.from_numpy(kept_KRD).to(self._device).float()
        scores_K[order_K] = self._inn.score_regions(regions_KRD, text).cpu().numpy()
        return scores_K

    def _row(self, item_id: str) -> int:
        row = self._images.row_of(item_id)
        assert row is not None, f"{item_id} is not of this index"
        return row
