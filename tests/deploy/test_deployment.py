"""Dockerfile, compose file and Kubernetes manifest: what they name exists, and fields are those of the schemas."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from kandinsky.cli.main import root_command

ROOT = Path(__file__).parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
INSTRUCTIONS = {
    "ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their values, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def arguments() -> dict[str, str]:
    return dict(value.partition("=")[::2] for name, value in instructions() if name == "ARG")


def check_command(words: list[str]) -> None:
    """A command of `kandinsky`, with options that it takes, and with a key."""
    program: Any = root_command()
    made = program.commands[words[0]].make_context(
        words[0], list(words[1:]), help_option_names=["-h", "--help"]
    )  # refuses what it does not know
    assert made.params["keys"] and not made.params["open_to_all"]


def test_the_dockerfile_copies_what_is_there_and_runs_what_exists() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert [name for name, _ in found].count("FROM") == 2
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name, value in found:
        if name == "COPY" and not value.startswith("--from"):
            *sources, _ = value.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source.removeprefix('./')}" in ignored, f"`{source}` is kept from the build"
    extras = arguments()["EXTRAS"].split(",")
    assert {"serve", "ray"} <= set(extras) <= set(EXTRAS)
    used = set(re.findall(r"\$\{?(\w+)", " ".join(value for name, value in found if name in ("RUN", "FROM", "COPY"))))
    assert used <= set(arguments()) | {"PATH"}, "a variable that nobody declares"


def test_the_image_runs_without_root_and_asks_its_health() -> None:
    last = {name: value for name, value in instructions()}
    assert last["USER"] == "kandinsky" and json.loads(last["ENTRYPOINT"]) == ["kandinsky"]
    check_command(json.loads(last["CMD"]))
    asked = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    compile(asked[2], "healthcheck", "exec")
    assert asked[:2] == ["python", "-c"] and "/health" in asked[2]
    assert "ADD" not in last and "--keys" in last["CMD"], "a server that listens everywhere has keys"


def test_data_files_of_the_package_are_in_the_build() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = set(
        re.findall(r'"(\w+)/[^"]*"', text.partition("[tool.setuptools.data-files]")[2].partition("[tool.ruff]")[0])
    )
    copied = " ".join(value for name, value in instructions() if name == "COPY")
    assert named - {"share"} and all(f" {name} " in f" {copied} ".replace("./", "") for name in named - {"share"})


def test_compose_has_a_server_for_cpus_and_one_for_gpus() -> None:
    made = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert set(made) <= {"name", "services", "volumes", "secrets", "x-server"}
    for name, service in made["services"].items():
        check_command(service["command"])
        assert set(service["build"]["args"]) <= set(arguments())
        assert {one.partition(":")[0] for one in service["volumes"]} <= set(made["volumes"])
        assert set(service["secrets"]) == set(made["secrets"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["ports"] == ["${KANDINSKY_ADDRESS:-127.0.0.1}:8000:8000"], "this machine alone, unless told"
        assert service["profiles"] == [name.partition("-")[2]]
    (device,) = made["services"]["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and device["driver"] == "nvidia"


@pytest.fixture(scope="module")
def kuberay() -> dict[str, list[dict[str, Any]]]:
    made: dict[str, list[dict[str, Any]]] = {}
    for one in yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8")):
        assert {"apiVersion", "kind", "metadata", "spec"} == set(one), one.get("kind")
        made.setdefault(one["kind"], []).append(one)
    return made


def test_the_cluster_has_the_fields_of_its_schema(kuberay: dict[str, list[dict[str, Any]]]) -> None:
    (cluster,) = kuberay["RayCluster"]
    assert cluster["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    assert set(spec) <= {
        "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs", "suspend",
        "gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "authOptions",
    }  # fmt: skip
    assert f"ray=={spec['rayVersion']}" in CONSTRAINTS.splitlines()
    assert set(spec["autoscalerOptions"]) <= {
        "version", "upscalingMode", "idleTimeoutSeconds", "image", "imagePullPolicy", "env", "envFrom", "resources",
        "volumeMounts", "securityContext",
    }  # fmt: skip
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert set(head) <= {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
    assert set(group) <= {
        "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts", "suspend",
        "idleTimeoutSeconds", "scaleStrategy",
    }  # fmt: skip
    assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group)
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert all(isinstance(value, str) for one in (head, group) for value in one["rayStartParams"].values())
    assert head["rayStartParams"]["num-cpus"] == "0", "work on the head would end with it"
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def pods(kuberay: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    spec = kuberay["RayCluster"][0]["spec"]
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    return [one["spec"] for one in (*templates, kuberay["Deployment"][0]["spec"]["template"])]


def test_pods_name_volumes_and_secrets_that_exist(kuberay: dict[str, list[dict[str, Any]]]) -> None:
    claims = {one["metadata"]["name"] for one in kuberay["PersistentVolumeClaim"]}
    images = set()
    autoscaler = kuberay["RayCluster"][0]["spec"]["autoscalerOptions"]["env"]  # nobody else gives it the token
    assert autoscaler == pods(kuberay)[0]["containers"][0]["env"]
    for pod in pods(kuberay):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        volumes = {one["name"]: one for one in pod.get("volumes", ())}
        claimed = {
            one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "persistentVolumeClaim" in one
        }
        assert claimed <= claims
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            images.add(container["image"])
            assert {one["name"] for one in container.get("volumeMounts", ())} <= set(volumes)
            named = {one["name"]: one for one in container["env"]}
            assert named["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "ray-token"
    assert len(images) == 1, "all of one version"


def test_the_server_joins_the_cluster_and_shares_its_files(kuberay: dict[str, list[dict[str, Any]]]) -> None:
    (deployment,), (service,) = kuberay["Deployment"], kuberay["Service"]
    spec = deployment["spec"]
    assert spec["replicas"] == 1 and spec["strategy"]["type"] == "Recreate", "one process owns the store"
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (server,) = spec["template"]["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in server["ports"]}
    assert server["readinessProbe"]["httpGet"]["path"] == "/ready"
    join, _, run = server["command"][2].partition("&&")
    assert "--num-cpus 0" in join
    words = shlex.split(run)
    assert words[:2] == ["exec", "kandinsky"]
    check_command(words[2:])
    most = kuberay["RayCluster"][0]["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert words[words.index("--workers") + 1] == str(most)
    worker = pods(kuberay)[1]["containers"][0]
    shared = {one["mountPath"] for one in worker["volumeMounts"]} & {one["mountPath"] for one in server["volumeMounts"]}
    assert f"{words[words.index('--store') + 1]}/files" in shared
    longest = int(words[words.index("--longest-job") + 1])
    assert pods(kuberay)[1]["terminationGracePeriodSeconds"] >= longest


def test_no_pod_is_told_of_the_services_beside_it() -> None:
    """A service called `kandinsky` would set variables that begin like this library's."""

    def pods(value: Any) -> list[dict[str, Any]]:
        if isinstance(value, list):
            return [pod for one in value for pod in pods(one)]
        if not isinstance(value, dict):
            return []
        return ([value] if "containers" in value else []) + pods(list(value.values()))

    found = pods(list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text())))
    assert len(found) == 3 and all(pod["enableServiceLinks"] is False for pod in found)
