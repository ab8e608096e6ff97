"""What embedding in bf16 and JPEGs decoded at a fraction of their size change: vectors, retrieval, speed. Flickr8k.

    zscmr preprocess --input flickr8k/ --set data.columns.partition=split --set preprocess.region_grid=4 --run runs/flickr8k
    .venv/bin/python benchmarks/embed_options.py runs/flickr8k/pairs flickr8k/

The packaged backbones on one thread, and CCA fitted on the exact features of the train pairs: the 1,000 test photographs and
their captions are encoded again, option by option, a chunk at a time in turns. Cosines: a row's vector with its exact one, of
the backbone (mean over regions or tokens) and of CCA. R@1/5/10 also with a bf16 gallery and exact queries, as when a corpus
is embedded in bf16 and the service asks in fp32.

These photographs are 160 pixels high, and `data.scaled_jpeg` touches none below 512: so they are enlarged to 640 pixels for
it, which gives them no detail, and whatever shared photographs have 512 pixels of their own are compared beside them.

value = pictures per CPU-second in bf16 over fp32 (bar 1.5 where the processor has bf16 of its own). Not part of `make
bench`: it needs pairs that were preprocessed before.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from contract import report
from corpus import PHOTOS, jpegs_of
from PIL import Image

from zscmr_ray.data.decode import decode_image
from zscmr_ray.models.backbones import ImageBackbone, TextBackbone, load_image_backbone, load_text_backbone
from zscmr_ray.models.cca import CCA
from zscmr_ray.retrieval.protocol import ClassGroups, evaluate_method
from zscmr_ray.retrieval.searches import Towers
from zscmr_ray.stages import require_pairs
from zscmr_ray.stages.measure.rows import pooled_features, read_features
from zscmr_ray.storage import Store

ROWS, CAPTIONS, ENLARGED_PX, SCALED_FROM_PX = 64, 256, 640, 512
Vectors = npt.NDArray[np.float32]


class Timed:
    """CPU-seconds by name."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work and count its time."""
        start_s = time.process_time()
        made = work()
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.process_time() - start_s
        return made

    def rates(self, num_rows: int) -> dict[str, float]:
        """Rows per CPU-second."""
        return {name: round(num_rows / seconds, 1) for name, seconds in self.cpu_s.items()}


def main(pairs_uri: str, folder: str) -> None:
    """Encode, compare and report."""
    torch.set_num_threads(1)
    store = Store(pairs_uri)
    features = read_features(store, require_pairs(store))
    train, test = (
        pooled_features(features.select(np.flatnonzero(features.partition == name)))
        for name in ("train", "test")
    )
    cca = CCA.fit(train.image_mean_NF[train.corpus.text_item_M], train.text_mean_MF)
    bytes_of = {name: data for path in Path(folder).glob("test-*.tar") for name, data in jpegs_of(path)}
    ids = [features.ids[row] for row in np.flatnonzero(features.partition == "test")]
    pictures = [bytes_of[row_id.split("#", 1)[1]] for row_id in ids]
    enlarged = [enlarge(data) for data in pictures]

    image = {name: load_image_backbone("efficientnet-lite0").run_in(name) for name in ("fp32", "bf16")}
    text = {name: load_text_backbone("minilm").run_in(name) for name in ("fp32", "bf16")}
    coded, said, decoded = Timed(), Timed(), Timed()
    images: dict[str, list[Vectors]] = {}
    texts: dict[str, list[Vectors]] = {}
    for start in range(0, len(pictures), ROWS):
        exact = pixels(pictures[start : start + ROWS])
        for name, backbone in image.items():
            found = coded.run(name, partial(encode, backbone, exact))
            images.setdefault(name, []).append(found)
        for name, scaled in (("enlarged, exact", False), ("enlarged, scaled", True)):
            made = decoded.run(name, partial(pixels, enlarged[start : start + ROWS], scaled=scaled))
            images.setdefault(name, []).append(encode(image["fp32"], made))
    for start in range(0, len(test.captions), CAPTIONS):
        part = test.captions[start : start + CAPTIONS]
        for name, words in text.items():
            found = said.run(name, partial(encode_texts, words, part))
            texts.setdefault(name, []).append(found)
    image_NF = {name: np.concatenate(parts) for name, parts in images.items()}
    text_MF = {name: np.concatenate(parts) for name, parts in texts.items()}
    vectors_ND = {name: cca.image(rows_NF) for name, rows_NF in image_NF.items()}
    captions_MD = {name: cca.text(rows_MF) for name, rows_MF in text_MF.items()}

    def recalls(asks: str, gallery: str, texts: tuple[str, str] = ("fp32", "fp32")) -> dict[str, Any]:
        towers = Towers(vectors_ND[asks], captions_MD[texts[0]], vectors_ND[gallery], captions_MD[texts[1]])
        numbers = evaluate_method(towers, test.corpus, ClassGroups((), ()))["instance"]["test"]
        return {
            direction: [round(one["value"], 4) for one in numbers[direction]["recall"].values()]
            for direction in ("image_to_text", "text_to_image")
        }

    rates = coded.rates(len(pictures))
    ratio = rates["bf16"] / rates["fp32"]
    report(
        name="embed_options",
        value=ratio,
        bar=1.5,
        holds=ratio >= 1.5,
        unit="pictures per CPU-second in bf16 / in fp32, packaged image backbone, one thread",
        detail={
            "images_per_cpu_s": rates,
            "captions_per_cpu_s": said.rates(len(test.captions)),
            "decoded_per_cpu_s": decoded.rates(len(pictures)),
            "cosines": {
                "bf16 images": cosines(image_NF["bf16"], image_NF["fp32"]),
                "bf16 images, CCA": cosines(vectors_ND["bf16"], vectors_ND["fp32"]),
                "bf16 captions": cosines(text_MF["bf16"], text_MF["fp32"]),
                "bf16 captions, CCA": cosines(captions_MD["bf16"], captions_MD["fp32"]),
                "scaled, enlarged": cosines(image_NF["enlarged, scaled"], image_NF["enlarged, exact"]),
                "scaled, enlarged, CCA": cosines(
                    vectors_ND["enlarged, scaled"], vectors_ND["enlarged, exact"]
                ),
                "scaled, photographs of 512 pixels and more": large_photographs(image["fp32"]),
            },
            "recall_at_1_5_10": {
                "fp32": recalls("fp32", "fp32"),
                "bf16": recalls("bf16", "bf16", ("bf16", "bf16")),
                "bf16 gallery, fp32 queries": recalls("fp32", "bf16", ("fp32", "bf16")),
                "enlarged, exact": recalls("enlarged, exact", "enlarged, exact"),
                "enlarged, scaled": recalls("enlarged, scaled", "enlarged, scaled"),
                "enlarged, scaled gallery, exact queries": recalls("enlarged, exact", "enlarged, scaled"),
            },
        },
    )


def enlarge(data: bytes) -> bytes:
    """The same picture with a short side of ENLARGED_PX."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = ENLARGED_PX / min(image.size)
    buffer = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pixels(pictures: list[bytes], *, scaled: bool = False) -> torch.Tensor:
    """The crops of the packaged image backbone, uint8 [B, 224, 224, 3]."""
    crops = [
        decode_image(
            data, size_px=224, crop_fraction=0.875, interpolation="bicubic", max_pixels=1 << 26, thumbnail_px=None,
            scaled_jpeg=scaled,
        ).pixels_HW3
        for data in pictures
    ]  # fmt: skip
    return torch.from_numpy(np.stack(crops))


def encode(backbone: ImageBackbone, pixels_BHW3: torch.Tensor) -> Vectors:
    """Mean over regions [B, D]; through half precision, as features are kept."""
    found: Vectors = backbone(pixels_BHW3, region_grid=4).regions_BRD.half().float().mean(1).numpy()
    return found


def encode_texts(backbone: TextBackbone, captions: list[str]) -> Vectors:
    """Mean over true tokens [B, D]; through half precision."""
    features = backbone(captions)
    sums_BD = features.tokens_BLD.half().float().sum(1)
    found: Vectors = (sums_BD / features.lengths_B[:, None]).numpy()
    return found


def cosines(rows_ND: Vectors, exact_ND: Vectors) -> dict[str, float]:
    """Mean, hundredth and least cosine of the rows with the exact ones."""
    lengths_N = np.linalg.norm(rows_ND, axis=1) * np.linalg.norm(exact_ND, axis=1)
    found_N = (rows_ND * exact_ND).sum(1) / lengths_N
    return {
        "mean": round(float(found_N.mean()), 5),
        "1%": round(float(np.quantile(found_N, 0.01)), 5),
        "least": round(float(found_N.min()), 5),
    }


def large_photographs(backbone: ImageBackbone) -> dict[str, float]:
    """Cosines of the backbone for shared photographs that have the size by themselves."""
    found = [data for path in sorted(PHOTOS.parent.glob("*.tar")) for _, data in jpegs_of(path)]
    large = [data for data in found if min(Image.open(io.BytesIO(data)).size) >= SCALED_FROM_PX]
    if not large:
        return {"rows": 0}
    exact, scaled = (encode(backbone, pixels(large, scaled=scaled)) for scaled in (False, True))
    return {"rows": len(large)} | cosines(scaled, exact)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["runs/flickr8k/pairs", "flickr8k"]))
