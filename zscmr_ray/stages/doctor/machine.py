"""This machine: packages, processors, memory, disks and limits. Not the cluster's other nodes: `cluster.py`."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from zscmr_ray.machine import available_bytes, num_cpus, total_bytes
from zscmr_ray.stages.doctor.finding import FAILED, OK, WARNING, Finding

_GB = 10**9
_MIN_MEMORY_BYTES = 4 * _GB
_MIN_DISK_BYTES, _LITTLE_DISK_BYTES = 1 * _GB, 10 * _GB
# Ray's object store lies in shared memory and takes 30% of the memory; on less it falls back to a disk.
_SHARED_MEMORY_FRACTION = 0.3
_MIN_OPEN_FILES = 4096
_SAID_VERSIONS = ("ray", "torch", "deepspeed", "transformers", "pyarrow", "faiss-cpu")
_INSTALL = "pip install -c constraints.txt -e ."


def check_versions() -> list[Finding]:
    """Python and every package that this one requires; one that is not installed is a failure."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    missing, versions = [], {}
    for name in _required():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return [Finding("packages", FAILED, f"not installed: {', '.join(missing)}", _INSTALL)]
    said = ", ".join(f"{name} {versions[name]}" for name in _SAID_VERSIONS if name in versions)
    return [Finding("packages", OK, f"Python {python}, {said}")]


def check_processors(*, needs_gpu: bool) -> list[Finding]:
    """CPUs this process may use, and GPUs; a configuration that asks for a GPU where there is none is a failure."""
    import torch

    cpus = Finding("cpus", OK, f"{num_cpus():g} of {os.cpu_count()} may be used")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(sorted({torch.cuda.get_device_name(number) for number in range(gpus)}))
    if gpus or not needs_gpu:
        return [cpus, Finding("gpus", OK, f"{gpus} ({names})" if gpus else "none, and none is asked for")]
    remedy = (
        "--set train.use_gpu=false --set embed.encoder_gpus=0 --set preprocess.encoder_gpus=0, or a machine or cluster with "
        "GPUs (its driver and a CUDA build of torch)"
    )
    return [cpus, Finding("gpus", FAILED, "none, but the configuration asks for them", remedy)]


def check_memory() -> list[Finding]:
    """Memory of the machine or its container, and the part of it that can be shared between processes."""
    total, available = total_bytes(), available_bytes()
    if total == sys.maxsize:
        return [Finding("memory", OK, "this system does not say how much there is")]
    said = f"{total / _GB:.1f} GB, {available / _GB:.1f} GB of it available"
    findings = [Finding("memory", OK, said)]
    if available < _MIN_MEMORY_BYTES:
        remedy = "end other programs or take a larger machine: Ray takes 1.5 GB, each encoder about 0.6 GB"
        findings = [Finding("memory", WARNING, said, remedy)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        shared_bytes = shutil.disk_usage(shared).total
        said = f"{shared_bytes / _GB:.1f} GB"
        if shared_bytes < _SHARED_MEMORY_FRACTION * total:
            remedy = "a larger /dev/shm (docker run --shm-size=30% of the memory), or --set ray.object_store_bytes=<less>"
            findings.append(
                Finding("shared memory", WARNING, f"{said}: Ray's object store is put on a disk", remedy)
            )
        else:
            findings.append(Finding("shared memory", OK, said))
    return findings


def check_disk(run_folder: Path | None) -> list[Finding]:
    """Free space where Ray spills (the temporary folder) and where a local run goes."""
    folders = {"disk for spilling": Path(tempfile.gettempdir())}
    if run_folder is not None:
        folders["disk of the run"] = run_folder
    findings = []
    for check, folder in folders.items():
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        said, remedy = (
            f"{free / _GB:.1f} GB free at {folder}",
            "free some, or choose another place (--run, TMPDIR)",
        )
        state = FAILED if free < _MIN_DISK_BYTES else WARNING if free < _LITTLE_DISK_BYTES else OK
        findings.append(Finding(check, state, said, "" if state == OK else remedy))
    return findings


def check_limits() -> list[Finding]:
    """The number of files one process may have open; every worker costs Ray a few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _MIN_OPEN_FILES or soft == resource.RLIM_INFINITY:
        return [Finding("open files", OK, f"{soft:,} allowed")]
    return [Finding("open files", WARNING, f"{soft:,} allowed", "ulimit -n 65536 before Ray is started")]


def _required() -> list[str]:
    """The names of the packages that ours asks for, extras left out."""
    texts = importlib.metadata.requires("zscmr_ray") or []
    return [re.split(r"[\s\[;<>=!~]", text)[0] for text in texts if "extra ==" not in text]
