"""Both towers to `image.onnx` and `text.onnx`, each compared with torch before it counts.

    onnx/image.onnx      pixels                        -> vector
    onnx/text.onnx       input_ids, attention_mask     -> vector
    onnx/tokenizer.json  where the text backbone has one
    onnx/contract.json   what goes in, what comes out, and how far from torch it was

The files say nothing of the machine that made them: the exporter's stack traces are taken out. Weights of the frozen
backbones are inside, unlike in a checkpoint.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError, MissingPackageError, ZscmrError
from zscmr_ray.models.backbones import TextBackbone
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.models.onnx.towers import traceable_towers

IMAGE, TEXT, TOKENIZER = "image.onnx", "text.onnx", "tokenizer.json"
OPSET = 20
TOLERANCE = 1e-4
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Above this, weights go to a file beside the graph: protobuf holds 2 GB.
_MAX_EMBEDDED_BYTES = 1_800_000_000
PROBES = (
    "a",
    "two words",
    "a short sentence about a picture",
    # 10 tokens with and without a tokenizer's two marks: ratio x length is whole there.
    "a red cat and a blue dog run",
    "one two three four five six seven eight nine ten",
    "a longer sentence, with commas, numbers 1 2 3 and a few more words than the others have",
)


def export_towers(encoder: DualEncoder, folder: Path) -> dict[str, Any]:
    """Write both towers and the tokenizer into a folder; returns the contract of their inputs and outputs.

    Raises MissingPackageError without the `onnx` extra, ConfigError for a model that cannot be traced, ZscmrError when
    an exported tower is further than 1e-4 from torch.
    """
    _check_packages()
    assert encoder.image_backbone is not None and encoder.text_backbone is not None, "both sides"
    image, text = traceable_towers(encoder)
    pixels_BSS3 = _probe_pixels(encoder.image_backbone.spec.size_px)
    images, texts = {"pixels": pixels_BSS3}, text_inputs(PROBES, encoder.text_backbone)
    folder.mkdir(parents=True, exist_ok=True)
    rows, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    _write(image, images, folder / IMAGE, dynamic=({0: rows},))
    _write(text, texts, folder / TEXT, dynamic=({0: rows, 1: tokens}, {0: rows, 1: tokens}))
    differences = {
        "image": _difference(folder / IMAGE, images, encoder.encode_images(pixels_BSS3)[0]),
        "text": _difference(folder / TEXT, texts, encoder.encode_texts(PROBES)[0]),
    }
    return {
        "image": {
            "file": IMAGE,
            "inputs": {"pixels": "uint8 [batch, size, size, 3], RGB, normalised inside"},
            "preprocessing": asdict(encoder.image_backbone.spec),
        },
        "text": {
            "file": TEXT,
            "inputs": {
                "input_ids": "int64 [batch, tokens], 0 after each row's tokens",
                "attention_mask": "int64 [batch, tokens], 1 for a token",
            },
            "tokenizer": TOKENIZER if _write_tokenizer(encoder.text_backbone, folder / TOKENIZER) else None,
            "max_tokens": encoder.text_backbone.max_tokens,
        },
        "output": {"vector": "float32 [batch, dimension]: unit blocks, unweighted"},
        "blocks": [asdict(block) for block in encoder.blocks],
        "opset": OPSET,
        "largest_difference_from_torch": differences,
    }


def text_inputs(captions: Sequence[str], backbone: TextBackbone) -> dict[str, Tensor]:
    """The text tower's inputs for some captions, through the backbone's own tokenizer."""
    batch = backbone.tokenize(captions)
    mask_BL = torch.arange(batch.ids_BL.shape[1]) < batch.lengths_B[:, None]
    return {"input_ids": batch.ids_BL, "attention_mask": mask_BL.long()}


def _check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"ONNX export needs {', '.join(missing)}", remedy='pip install -c constraints.txt -e ".[onnx]"'
        )


def _write(tower: nn.Module, inputs: Mapping[str, Tensor], path: Path, *, dynamic: Any) -> None:
    import onnx

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        # The exporter's own deprecations and advice are not the user's business.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                tower,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["vector"],
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            f"the {path.stem} tower cannot be exported to ONNX",
            got=str(error).strip().splitlines()[0],
            remedy="another backbone (docs/export.md names those that were tried), or leave --onnx out",
        ) from error
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
    assert program is not None
    model = program.model_proto
    _forget_the_machine(model)
    is_large = model.ByteSize() > _MAX_EMBEDDED_BYTES
    onnx.save(model, path, save_as_external_data=is_large, location=f"{path.name}.data")


def _forget_the_machine(model: Any) -> None:
    """Take out what the exporter notes about each node: source paths and stack traces."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        for entry in (*graph.node, *graph.value_info, *getattr(graph, "input", ())):
            if hasattr(entry, "metadata_props"):
                del entry.metadata_props[:]
        for entry in (*getattr(graph, "output", ()), *getattr(graph, "initializer", ())):
            if hasattr(entry, "metadata_props"):
                del entry.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""


def _difference(path: Path, inputs: Mapping[str, Tensor], expected_BD: Tensor) -> float:
    """The largest difference from torch. Raises ZscmrError above the tolerance."""
    found_BD = run_tower(path, {name: value.numpy() for name, value in inputs.items()})
    difference = float(np.abs(found_BD - expected_BD.float().cpu().numpy()).max())
    if not difference <= TOLERANCE:
        raise ZscmrError(
            f"the exported {path.stem} tower does not agree with torch",
            got=f"a difference of {difference:.2e} in a unit block",
            expected=f"at most {TOLERANCE:.0e}",
            remedy="report it with the versions of torch, onnx, onnxscript and onnxruntime",
        )
    return difference


def run_tower(path: Path, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Run an exported tower with onnxruntime on the CPU, one thread; returns its vectors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    vectors: npt.NDArray[np.float32] = session.run(["vector"], dict(inputs))[0]
    return vectors


def _probe_pixels(size_px: int) -> Tensor:
    """Three pictures of colour gradients with noise, uint8 [3, size, size, 3], the same ones always."""
    random = np.random.default_rng(0)
    ramp_S = np.linspace(0, 1, size_px)
    pictures = []
    for number in range(3):
        base_SS3 = np.stack([np.outer(ramp_S**p, ramp_S[::-1]) for p in random.uniform(0.3, 3, 3)], axis=2)
        noise_SS3 = random.normal(0, 0.05 * (number + 1), base_SS3.shape)
        pictures.append(np.clip(255 * (base_SS3 + noise_SS3), 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(pictures))


def _write_tokenizer(backbone: Any, path: Path) -> bool:
    """Write `tokenizer.json` where the backbone has a tokenizer of the tokenizers library; whether it did."""
    tokenizer = getattr(backbone, "tokenizer", None)
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if fast is None or not hasattr(fast, "save"):
        return False
    fast.save(str(path))
    return True
