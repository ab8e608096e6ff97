"""What the doctor finds: on a machine that is well, and with each thing that it looks for wrong."""

from __future__ import annotations

import doctest
import http.server
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from zscmr_ray.cli.main import run
from zscmr_ray.config import Config
from zscmr_ray.errors import StorageError
from zscmr_ray.stages.doctor import FAILED, OK, WARNING, Finding, cluster, data, finding, machine
from zscmr_ray.storage import Store


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[str]:
    """Something that answers every request with the parameter's status, as a dashboard without or with a token would."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def states(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.state for one in findings}


def test_worked_examples() -> None:
    failed, tried = doctest.testmod(finding)
    assert tried and not failed


def test_packages_are_those_the_project_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = machine.check_versions()
    assert found.state == OK and "ray 2." in found.said and "torch" in found.said
    required = ["torch", "no-such-package-here>=2", "rich[x]; extra == 'never'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _name: required)
    (found,) = machine.check_versions()
    assert found.state == FAILED and found.said == "not installed: no-such-package-here"
    assert "constraints.txt" in found.remedy


def test_a_gpu_that_is_asked_for_and_not_there_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert states(machine.check_processors(needs_gpu=False)) == {"cpus": OK, "gpus": OK}
    assert states(machine.check_processors(needs_gpu=True))["gpus"] == FAILED
    assert not cluster.needs_gpu(Config())


def test_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, state in ((3 * 10**9, WARNING), (8 * 10**9, OK)):
        monkeypatch.setattr(machine, "available_bytes", lambda left=available: left)
        assert states(machine.check_memory())["memory"] == state


def test_little_disk_is_said_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"bytes": 50 * 10**9}
    usage = type("Usage", (), {"free": property(lambda _self: free["bytes"])})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _path: usage())
    for number, state in ((50, OK), (5, WARNING), (0, FAILED)):
        free["bytes"] = number * 10**9
        found = machine.check_disk(tmp_path / "run" / "that is not there yet")
        assert states(found) == {"disk for spilling": state, "disk of the run": state}


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _which: (1024, 4096))
    (found,) = machine.check_limits()
    assert found.state == WARNING and "ulimit -n" in found.remedy


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_token_is_asked_for_and_private(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert states(cluster.check_token()) == {"token": FAILED}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    path = open_folder / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert states(cluster.check_token()) == {"token": OK}
    path.write_text("secret-of-this-test")
    for folder_mode, mode, state in ((0o755, 0o644, WARNING), (0o755, 0o600, OK), (0o700, 0o644, OK)):
        open_folder.chmod(folder_mode)
        path.chmod(mode)
        (found,) = cluster.check_token()
        assert found.state == state and "secret" not in found.said + found.remedy
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-of-this-test")
    (found,) = cluster.check_token()
    assert found.state == OK and "secret" not in found.said


@pytest.mark.parametrize("dashboard", [200, 401], indirect=True)
def test_a_dashboard_that_asks_for_no_token_is_open(dashboard: str) -> None:
    (found,) = cluster.check_dashboards([f"http://{dashboard}/"])
    is_open = cluster._status(dashboard) == 200
    assert found.state == (FAILED if is_open else OK) and dashboard in found.said
    assert "RAY_AUTH_MODE=token" in found.remedy or not is_open


@pytest.mark.parametrize("dashboard", [401], indirect=True)
def test_a_dashboard_that_others_reach_is_a_warning(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if 127.0.0.1 were the address that this machine has in its network.
    monkeypatch.setattr(cluster, "_own_address", lambda: "127.0.0.1")
    (found,) = cluster.check_dashboards([dashboard])
    assert found.state == WARNING and "--dashboard-host=127.0.0.1" in found.remedy
    monkeypatch.setattr(cluster, "_own_address", lambda: None)
    assert states(cluster.check_dashboards([dashboard])) == {"dashboard": OK}
    assert states(cluster.check_dashboards(["127.0.0.1:9"])) == {"dashboard": OK}


def test_storage_is_written_read_and_left_clean(tmp_path: Path) -> None:
    (found,) = data.check_storage(str(tmp_path / "run"))
    assert found.state == OK and list((tmp_path).rglob("*.*")) == []
    (tmp_path / "file").write_text("")
    (found,) = data.check_storage(str(tmp_path / "file" / "run"))
    assert found.state == FAILED and found.remedy


def test_storage_that_refuses_or_forgets_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "read_bytes", lambda _self, _key: b"something else")
    (found,) = data.check_storage(str(tmp_path))
    assert found.state == FAILED and "does not give back" in found.said

    def refuse(*_: object) -> None:
        raise StorageError("may not be written", got="s3://b: 403", remedy="check the key")

    monkeypatch.setattr(Store, "write_bytes", refuse)
    (found,) = data.check_storage(str(tmp_path))
    assert (found.state, found.said, found.remedy) == (
        FAILED,
        "may not be written; got: s3://b: 403",
        "check the key",
    )


def test_storage_on_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = data.check_storage(f"{s3_bucket}/run")
    assert found.state == OK and "AWS_ACCESS_KEY_ID" in found.said
    assert Store(f"{s3_bucket}/run").list() == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (found,) = data.check_storage(f"{s3_bucket}/other")
    assert found.state == FAILED and found.remedy and "wrong" not in found.said + found.remedy


def test_first_rows_of_first_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", good_samples(0, 20))
    write_tar(tmp_path / "shards/b.tar", good_samples(1, 2) + bad_samples())
    (tmp_path / "shards/c.tar").write_bytes((tmp_path / "shards/a.tar").read_bytes()[:700])
    write_tar(tmp_path / "shards/d.tar", good_samples(2, 2))
    found = data.check_shards(corpus_config(tmp_path))
    assert states(found) == {"input": OK, "shard a.tar": OK, "shard b.tar": WARNING, "shard c.tar": FAILED}
    assert "first 16 rows" in found[1].said
    assert "would be rejected" in found[2].said and "empty_caption" in found[2].said
    (tmp_path / "none").mkdir()
    empty = corpus_config(tmp_path, data={"input_uri": str(tmp_path / "none")})
    assert states(data.check_shards(empty)) == {"input": FAILED}


def command(tmp_path: Path, *words: str) -> list[str]:
    tiny = [f"--set=preprocess.{side}_backbone=tiny" for side in ("image", "text")]
    return ["doctor", "--input", f"{tmp_path}/shards", "--run", f"{tmp_path}/run", *tiny, *words]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "shards/a.tar", good_samples(0, 40))
    assert run(command(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "ok   decode rate: " in said and "ok   encode rate: " in said and "s here, limited by" in said
    assert said.splitlines()[-1].endswith("0 failed")
    assert not list((tmp_path / "run").rglob("*.*"))


def test_a_failure_is_the_exit_code_and_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "shards/a.tar", [(key, members) for key, members in bad_samples()[:2]])
    assert run(command(tmp_path, "--json")) == 1
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["shard a.tar"]["state"] == "failed" and found["shard a.tar"]["remedy"]
    assert "decode rate" not in found and found["packages"]["state"] == "ok"


def test_a_cluster_that_cannot_be_reached_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--run", str(tmp_path), "--address", "127.0.0.1:9", "--json"]) == 1
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["ray"]["state"] == "failed" and "127.0.0.1:9" in found["ray"]["said"]
    assert cluster.check_reachable("auto") == []


def test_jobs_that_would_run_on_another_ray_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head whose dashboard's port is taken has none; the Ray that has the port takes its jobs."""
    import ray._private.worker

    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(session_name="ours"))
    for session, state in {"ours": OK, "theirs": FAILED}.items():
        monkeypatch.setattr(cluster, "_session_of", lambda _address, session=session: session)
        assert states(cluster.check_jobs("http://127.0.0.1:8265")) == {"jobs": state}
    monkeypatch.undo()
    assert cluster.check_jobs(None) == []
    assert states(cluster.check_jobs("http://127.0.0.1:9")) == {"jobs": FAILED}
