"""Write the exported folder: weights, descriptions, model card, on request both towers as ONNX; the manifest last.

    README.md model.safetensors meta.json config.json split.json [onnx/] manifest.json

It is a checkpoint (`zscmr embed --model DIR` takes it) without what belongs to the run: no places, no lease, no log. What
it is not: a package with the frozen backbones; only ONNX files hold those.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from zscmr_ray.claim import Claim, open_stage
from zscmr_ray.config import Config
from zscmr_ray.engine.checkpoint import CheckpointMeta, load_checkpoint, load_dual_encoder
from zscmr_ray.errors import RefusedError
from zscmr_ray.lease import LEASES
from zscmr_ray.manifest import (
    MANIFEST,
    STAGE_MARK,
    Manifest,
    StageKey,
    hash_json,
    part_record,
    read_manifest,
    require_manifest,
)
from zscmr_ray.retriever import write_pretrained
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.export.card import RunFacts, model_card
from zscmr_ray.stages.report import REPORT
from zscmr_ray.storage import Store
from zscmr_ray.storage.store import json_bytes

STAGE = "export"
ONNX, CONTRACT = "onnx", "contract.json"


def run_export(config: Config, target: Store, *, onnx: bool = False, overwrite: bool = False) -> StageResult:
    """Write the run's checkpoint and its model card to `target`; returns at once when they are there.

    Raises DataError before `zscmr train` is complete, RefusedError for a folder with other things in it and for a report
    of another checkpoint, and with `onnx` what `models.onnx.exporting` raises.
    """
    checkpoint = stage_store(config, "train")
    trained = require_manifest(checkpoint, "train")
    evaluated = read_manifest(stage_store(config, "evaluate"))
    model, meta = load_checkpoint(checkpoint)
    pairs = _pairs(config, meta)
    inputs = [found and found.fingerprint for found in (trained, pairs, evaluated)]
    key = StageKey(stage=STAGE, config={"onnx": onnx}, input_fingerprint=hash_json(inputs))
    _check_target(target)
    report = None if evaluated is None else _report(config, meta)
    with open_stage(target, key, overwrite=overwrite) as claim:
        done = claim.complete
        if done is None:
            contract = _write_onnx(target, checkpoint, meta) if onnx else None
            card = model_card(meta, RunFacts(pairs, trained, report, contract))
            write_pretrained(target, model, meta, card=card)
            done = _finish(claim, meta, contract)
            skipped = False
        else:
            skipped = True
    # What a lease says of host and user belongs to no published folder.
    target.delete_tree(LEASES)
    target.delete(STAGE_MARK)
    return StageResult(STAGE, target.uri, skipped=skipped, counts=done.counts, info=done.info)


def _finish(claim: Claim, meta: CheckpointMeta, contract: dict[str, Any] | None) -> Manifest:
    names = [one.key for one in claim.store.list() if not one.key.startswith("_")]
    manifest = Manifest(
        key=claim.key,
        config_hash=claim.key.config_hash,
        counts={"files": len(names)},
        parts=[part_record(claim.store, name) for name in names],
        info={"fingerprint": meta.fingerprint}
        | ({"onnx": contract["largest_difference_from_torch"]} if contract else {}),
    )
    claim.finish(manifest)
    return manifest


def _write_onnx(target: Store, checkpoint: Store, meta: CheckpointMeta) -> dict[str, Any]:
    # Here and not above: an export without ONNX needs neither the backbones nor the exporter.
    from zscmr_ray.models.onnx.exporting import export_towers

    encoder, _ = load_dual_encoder(checkpoint)
    with tempfile.TemporaryDirectory(prefix="zscmr-onnx-") as folder:
        contract = export_towers(encoder, Path(folder)) | {
            "fingerprint": meta.fingerprint,
            "label_weight": meta.label_weight,
        }
        for path in sorted(Path(folder).iterdir()):
            target.put_file(f"{ONNX}/{path.name}", path)
    target.write_bytes(f"{ONNX}/{CONTRACT}", json_bytes(contract))
    return contract


def _pairs(config: Config, meta: CheckpointMeta) -> Manifest | None:
    """The manifest of the pairs that were trained on: the run's, or those that the training was pointed at."""
    found = read_manifest(stage_store(config, "preprocess"))
    elsewhere = meta.config.get("data", {}).get("pairs_uri")
    return found if found is not None or not elsewhere else read_manifest(Store(elsewhere))


def _report(config: Config, meta: CheckpointMeta) -> dict[str, Any]:
    store = stage_store(config, "evaluate")
    report: dict[str, Any] = store.read_json(REPORT)
    if report["model"]["fingerprint"] != meta.fingerprint:
        raise RefusedError(
            "the report is of another checkpoint",
            got=f"{store.uri}: {report['model']['fingerprint'][:12]}",
            expected=meta.fingerprint[:12],
            remedy="zscmr evaluate --overwrite",
        )
    return report


def _check_target(target: Store) -> None:
    """Refuse a folder of somebody else's: --overwrite would empty it."""
    ours = any(target.exists(name) for name in (MANIFEST, STAGE_MARK, LEASES))
    if not ours and target.exists() and target.list():
        raise RefusedError(
            "the folder has files in it that no export wrote",
            got=target.uri,
            expected="a new or empty folder, or an earlier export",
            remedy="another --to",
        )
