"""Ray: the token, dashboards that answer to anybody, and the nodes of a cluster that is connected. Starts and stops none."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

import httpx

from zscmr_ray.config import Config
from zscmr_ray.stages.doctor.finding import FAILED, OK, WARNING, Finding

DEFAULT_DASHBOARD = "127.0.0.1:8265"
_TIMEOUT_S = 2.0


def check_token() -> list[Finding]:
    """Whether this process sends and asks for a token, and whether others on this machine can read it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        said = f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '')}: Ray runs anybody's code"
        return [Finding("token", FAILED, said, "export RAY_AUTH_MODE=token, here and on every node")]
    if os.environ.get("RAY_AUTH_TOKEN"):
        return [Finding("token", OK, "asked for; taken from RAY_AUTH_TOKEN")]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        said = f"asked for; Ray makes one in {path} when it starts here"
        return [Finding("token", OK, said)]
    if _others_read(path):
        mode = stat.S_IMODE(path.stat().st_mode)
        return [
            Finding("token", WARNING, f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}")
        ]
    return [Finding("token", OK, f"asked for; kept in {path}")]


def check_dashboards(addresses: Iterable[str]) -> list[Finding]:
    """Dashboards that answer here: without a token they must refuse, and only this machine should reach them.

    `addresses` are `host:port`, with or without `http://`; what does not answer is no dashboard.
    """
    findings = []
    for address in sorted({address.removeprefix("http://").rstrip("/") for address in addresses}):
        status = _status(address)
        if status is None:
            continue
        if status not in {401, 403}:
            remedy = "stop that Ray, export RAY_AUTH_MODE=token and start it again"
            findings.append(
                Finding("dashboard", FAILED, f"{address} runs anybody's code: it asks for no token", remedy)
            )
        elif outside := _outside(address):
            remedy = (
                "ray start --head --dashboard-host=127.0.0.1; reach it with ssh -L or kubectl port-forward"
            )
            said = f"{address} asks for a token, but answers other machines too (at {outside})"
            findings.append(Finding("dashboard", WARNING, said, remedy))
        else:
            findings.append(
                Finding("dashboard", OK, f"{address} asks for a token and answers this machine only")
            )
    return findings or [Finding("dashboard", OK, "none answers here")]


def check_reachable(address: str) -> list[Finding]:
    """Whether something listens at a cluster's address; nothing to say when it does, or when the address is none (`auto`).

    Ray itself takes minutes to give up.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return []
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except OSError as error:
        remedy = "`ray status --address ...` must answer from here: is it up, is it the right port, is there a tunnel?"
        return [Finding("ray", FAILED, f"nothing answers at {address}: {error.strerror or error}", remedy)]
    return []


def check_nodes(config: Config) -> list[Finding]:
    """The connected cluster's nodes, and whether they have what the configuration asks for."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    said = f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs"
    train = config.train
    wanted = {
        "train": (float(train.num_workers), float(train.num_workers if train.use_gpu else 0)),
        "embed": (0.5, config.embed.encoder_gpus * (config.embed.num_encoders or 1)),
        "preprocess": (0.5, config.preprocess.encoder_gpus * (config.preprocess.num_encoders or 1)),
    }
    short = [
        stage for stage, (need_cpus, need_gpus) in wanted.items() if cpus < need_cpus or gpus < need_gpus
    ]
    if not short:
        return [Finding("nodes", OK, said)]
    remedy = "an autoscaling cluster brings them when work waits; else add nodes, or ask for less (num_workers, encoder_gpus)"
    return [Finding("nodes", WARNING, f"{said}: too few now for {', '.join(short)}", remedy)]


def connected_dashboard() -> set[str]:
    """Where the connected cluster says that its dashboard is; empty when it has none."""
    import ray._private.worker

    return {url} if (url := ray._private.worker.get_dashboard_url()) else set()


def check_jobs(address: str | None) -> list[Finding]:
    """Whether jobs sent to an address run on the connected cluster; nothing to say without an address.

    A head that finds its dashboard's port taken goes on without a dashboard, and whoever has the port takes its jobs.
    """
    if not address:
        return []
    import ray._private.worker

    try:
        session = _session_of(address)
    except Exception as error:
        said = f"{address} takes none: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return [
            Finding("jobs", FAILED, said, "`ray job list` must answer from here: see RAY_API_SERVER_ADDRESS")
        ]
    if session != ray._private.worker._global_node.session_name:
        remedy = "start the head with another --dashboard-port, and export RAY_API_SERVER_ADDRESS with that"
        return [Finding("jobs", FAILED, f"{address} is another Ray's: jobs would run there", remedy)]
    return [Finding("jobs", OK, f"{address} is this cluster's")]


def needs_gpu(config: Config) -> bool:
    """Whether a stage of this configuration asks for GPUs."""
    return config.train.use_gpu or bool(config.embed.encoder_gpus or config.preprocess.encoder_gpus)


def _status(address: str) -> int | None:
    """What the jobs API at an address answers to somebody without a token; None when nothing does."""
    try:
        return httpx.get(f"http://{address}/api/jobs/", timeout=_TIMEOUT_S, trust_env=False).status_code
    except httpx.HTTPError:
        return None


def _session_of(address: str) -> str:
    """The name of the Ray session behind a jobs API."""
    from ray.job_submission import JobSubmissionClient

    found = JobSubmissionClient(address)._do_request("GET", "/api/version").json()
    return str(found["session_name"])


def _outside(address: str) -> str | None:
    """The address at which other machines reach a dashboard; None when only this machine does."""
    host, _, port = address.rpartition(":")
    own = _own_address()
    if host not in {"127.0.0.1", "localhost", "[::1]"}:
        return address
    return f"{own}:{port}" if own and _status(f"{own}:{port}") is not None else None


def _own_address() -> str | None:
    """The address of this machine in its network; None without one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # The address of documentation examples: a datagram socket only chooses its route.
            probe.connect(("192.0.2.1", 9))
            found = str(probe.getsockname()[0])
        except OSError:
            return None
    return None if found.startswith("127.") else found


def _others_read(path: Path) -> bool:
    """Whether the group, or everybody, may read a file and enter all the folders that it is in."""
    modes = [folder.stat().st_mode for folder in path.absolute().parents]
    rights = ((stat.S_IRGRP, stat.S_IXGRP), (stat.S_IROTH, stat.S_IXOTH))
    return any(path.stat().st_mode & read and all(mode & enter for mode in modes) for read, enter in rights)
