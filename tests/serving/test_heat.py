"""Region weights over HTTP: of an item and of its caption, with the part of the picture that they cover."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from zscmr_ray.config import Config
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.serving.heat import item_regions
from zscmr_ray.serving.searcher import Searcher
from zscmr_ray.stages import stage_store


def test_an_item_and_its_caption_have_the_weights_that_embed_kept(imfa_config: Config) -> None:
    config = imfa_config
    searcher = Searcher(stage_store(config, "index"))
    gallery = Gallery(Path(config.data.run_uri) / "index/image")
    row_id = gallery.id_of(5)
    assert quote(row_id, safe="") != row_id
    item, caption = searcher.item(row_id), searcher.item(f"{row_id}#0")
    assert item is not None and caption is not None and item.regions is not None
    assert gallery.regions.weights_NR is not None
    flat = [weight for line in item.regions.weights for weight in line]
    assert flat == gallery.regions.weights_NR[5].tolist()
    assert sum(flat) == pytest.approx(1.0, abs=1e-2)
    # 48 x 40 pixels, of which the centre square of 35 is seen.
    assert item.regions.box == pytest.approx([6.5 / 48, 2.5 / 40, 41.5 / 48, 37.5 / 40])
    assert caption.regions == item.regions and caption.side == "text"
    assert item_regions(gallery, 5, None) is None
    squashed = item_regions(gallery, 5, {"fit": "squash", "fraction": 1.0})
    assert squashed is not None and squashed.box == [0.0, 0.0, 1.0, 1.0]
