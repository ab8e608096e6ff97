"""The Kubernetes files as an operator applies them: rendered by kubectl, held against schemas and against our own rules.

Each of kubectl, the core schemas (kubernetes-validate) and KubeRay's schemas is optional: what is absent is skipped.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from zscmr_ray.cli.main import app as command_line
from zscmr_ray.config import Config, load

ROOT = Path(__file__).parents[1]
KUBERAY = ROOT / "cluster" / "kuberay"
SIZES = yaml.safe_load((ROOT / "cluster" / "sizes.yaml").read_text())
SCHEMAS = ROOT.parent / "shared" / "schemas"
OVERLAYS = ("dev", "prod")
MOUNT = "/etc/zscmr/"


def render(overlay: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays cannot be rendered")
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def base_files() -> list[Path]:
    return sorted(path for path in (KUBERAY / "base").glob("*.yaml") if path.name != "kustomization.yaml")


def kind(resources: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    found = [one for one in resources if one["kind"] == name]
    assert found, f"no {name} is rendered"
    return found


def cluster_specs(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The RayCluster's own spec, and its copies in jobs and service."""
    specs = [kind(resources, "RayCluster")[0]["spec"]]
    specs += [job["spec"]["rayClusterSpec"] for job in kind(resources, "RayJob")]
    return specs + [one["spec"]["rayClusterConfig"] for one in kind(resources, "RayService")]


def pods(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pod template: heads, workers, submitters."""
    found = []
    for spec in cluster_specs(resources):
        found += [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return found + [job["spec"]["submitterPodTemplate"] for job in kind(resources, "RayJob")]


def closed(schema: Any) -> Any:
    """The schema with unknown properties as errors, where it does not allow them: a typo is one."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed_schema = {key: closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        closed_schema["additionalProperties"] = False
    return closed_schema


def kuberay_schema(kind: str) -> Any:
    if not SCHEMAS.is_dir():
        pytest.skip(f"KubeRay's schemas are not present at {SCHEMAS}")
    with gzip.open(SCHEMAS / f"ray.io_v1_{kind.lower()}s.schema.json.gz") as file:
        schema = closed(json.load(file))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_ray_resources_fit_kuberays_schemas(resources: list[dict[str, Any]]) -> None:
    for one in resources:
        if one["apiVersion"] == "ray.io/v1":
            jsonschema.validate(one, kuberay_schema(one["kind"]))


@pytest.mark.parametrize("path", base_files(), ids=lambda path: path.stem)
def test_base_files_fit_their_schemas_before_they_are_rendered(path: Path) -> None:
    one = yaml.safe_load(path.read_text())
    if one["apiVersion"] == "ray.io/v1":
        jsonschema.validate(one, kuberay_schema(one["kind"]))


def test_a_typo_is_an_error_by_kuberays_schemas() -> None:
    one = yaml.safe_load((KUBERAY / "base" / "ray-cluster.yaml").read_text())
    one["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(one, kuberay_schema("RayCluster"))


def test_core_resources_and_pods_fit_kubernetes_schemas(resources: list[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    version = validate.latest_version()
    for one in resources:
        if one["apiVersion"] != "ray.io/v1":
            validate.validate(one, version, strict=True)
    for template in pods(resources):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template.get("metadata", {}),
            "spec": template["spec"],
        }
        validate.validate(pod, version, strict=True)


def test_every_ray_asks_for_the_token_of_a_secret(resources: list[dict[str, Any]]) -> None:
    for spec in cluster_specs(resources):
        assert spec["authOptions"] == {"mode": "token", "secretName": "zscmr-ray-token"}
        assert spec["rayVersion"] == SIZES["ray"]
        assert (
            spec["enableInTreeAutoscaling"]
            and "dashboard-host" not in spec["headGroupSpec"]["rayStartParams"]
        )
        # Memory, CPUs and GPUs are the pod's; the head offers none, so that no work runs on it.
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_no_secret_is_written_down(resources: list[dict[str, Any]]) -> None:
    assert not [one for one in resources if one["kind"] == "Secret"]
    for template in pods(resources):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                is_secret = re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"])
                assert not is_secret or "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_pods_are_unprivileged_and_bounded(resources: list[dict[str, Any]]) -> None:
    for template in pods(resources):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "zscmr"
        (container,) = pod["containers"]
        assert container["image"] == SIZES["image"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        for volume in container.get("volumeMounts", []):
            assert volume["name"] in {one["name"] for one in pod["volumes"]}


def test_prod_groups_have_the_sizes_and_dev_none_of_the_gpus() -> None:
    for spec in cluster_specs(render("prod")):
        for group in spec["workerGroupSpecs"]:
            sizes = SIZES[group["groupName"]]
            assert (group["minReplicas"], group["maxReplicas"]) == (sizes["min_nodes"], sizes["max_nodes"])
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            gpus = {"nvidia.com/gpu": sizes["gpus"]} if "gpus" in sizes else {}
            assert limits == {"cpu": sizes["pod_cpus"], "memory": f"{sizes['pod_memory_gib']}Gi"} | gpus
            # A pod must fit the machine that its group is made of.
            assert sizes["pod_cpus"] < sizes["cpus"] and sizes["pod_memory_gib"] < sizes["memory_gib"]
    for spec in cluster_specs(render("dev")):
        assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["decode"]
        assert "nvidia" not in json.dumps(spec["workerGroupSpecs"][0]["template"]["spec"]["containers"])


def test_jobs_retry_end_and_run_our_verbs(resources: list[dict[str, Any]]) -> None:
    verbs = {
        command.name or getattr(command.callback, "__name__", "")
        for command in command_line.registered_commands
    }
    for job in kind(resources, "RayJob"):
        spec = job["spec"]
        assert (
            spec["backoffLimit"] > 0
            and spec["shutdownAfterJobFinishes"]
            and spec["ttlSecondsAfterFinished"] > 0
        )
        found = re.fullmatch(rf"python /app/(jobs/(\w+)\.py) --config {MOUNT}(\S+)", spec["entrypoint"])
        assert found is not None and (ROOT / found[1]).exists() and found[2] in verbs
        assert found[3] in kind(resources, "ConfigMap")[0]["data"]
        assert spec["rayClusterSpec"] == kind(resources, "RayCluster")[0]["spec"]


def test_the_service_is_ours_and_asks_for_a_key(resources: list[dict[str, Any]], tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    spec = kind(resources, "RayService")[0]["spec"]
    serve = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = serve.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    path = tmp_path / "ray_config.yaml"
    path.write_text(kind(resources, "ConfigMap")[0]["data"]["ray_config.yaml"])
    assert application.args["config"] == f"{MOUNT}{path.name}"
    config: Config = load.load_config(str(path)).config
    # Not loopback: every replica then needs a key from its Secret.
    assert not config.serve.is_loopback and serve.http_options.host == config.serve.host
    for options in application.deployments:
        scaling = options.autoscaling_config
        assert scaling["min_replicas"] == SIZES["serve"]["min_replicas"] >= 2
        assert scaling["max_replicas"] == SIZES["serve"]["max_replicas"]
    assert spec["upgradeStrategy"]["type"] == "NewCluster" and spec["excludeHeadPodFromServeSvc"]


def test_traffic_is_closed_but_for_named_clients(resources: list[dict[str, Any]]) -> None:
    (policy,) = kind(resources, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/part-of": "zscmr"}
    others = [rule for rule in policy["spec"]["ingress"] if "namespaceSelector" in rule["from"][0]]
    assert others and all(rule["ports"] for rule in others), "only our own pods reach every port"
    (budget,) = kind(resources, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"]["ray.io/serve"] == "true"


def test_parts_can_be_applied_by_label(resources: list[dict[str, Any]]) -> None:
    parts = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in resources}
    assert parts == {"cluster", "train", "embed", "serve", "shared"}
    assert len({one["metadata"]["namespace"] for one in resources}) == 1
