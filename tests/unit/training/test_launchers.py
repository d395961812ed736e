"""One container command on every cluster; submissions are valid and contain no secrets."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from moto import mock_aws

from schemas.errors import ConfigError, TransientError
from training.launch import sagemaker
from training.launch.__main__ import machines
from training.launch.cli import launch_command
from training.launch.job import TrainingJob, _quantity
from training.launch.kubeflow import train_job
from training.launch.kubernetes import KubernetesSettings, apply, kubernetes_job, to_yaml
from training.launch.sagemaker import EFA_ENVIRONMENT, SageMakerSettings, training_job

DEPLOY = Path(__file__).parents[3] / "deploy" / "kubernetes"
JOB = TrainingJob(
    "riffle-train", "riffle-train:latest", ("train", "s3://b/archive", "--ranker", "deepfm"), nodes=2, processes=2
)
ON = KubernetesSettings("learning", "riffle", "riffle-train", "riffle")
AWS = SageMakerSettings("arn:aws:iam::123456789012:role/train", "s3://bucket/out")


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = next(each for each in objects if each["kind"] == "Job")["spec"]["template"]["spec"]
    return spec


# ---- everywhere


def test_every_platform_runs_the_same_command() -> None:
    request = training_job(JOB, AWS)["AlgorithmSpecification"]
    commands = [
        pod_of(kubernetes_job(JOB))["containers"][0]["command"],
        train_job(JOB)[0]["spec"]["trainer"]["command"],
        [*request["ContainerEntrypoint"], *request["ContainerArguments"]],
    ]
    assert commands == [JOB.command] * 3
    assert JOB.command[:4] == ["python", "-m", "training.launch", "train"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Upper"},
        {"name": "a" * 60},
        {"name": "a;b"},
        {"image": ""},
        {"arguments": ()},
        {"nodes": 0},
        {"gpus": 1, "processes": 2},
        {"memory": "lots"},
        {"memory": "16"},
        {"memory": "512m"},
        {"memory": "-1Gi"},
        {"memory": "16 Gi"},
        {"memory": "16gi"},
        {"memory": ""},
        {"cpus": "four"},
        {"cpus": "0"},
        {"cpus": "4Gi"},
        {"environment": {"AWS_SECRET_ACCESS_KEY": "x"}},
        {"environment": {"DB_PASSWORD": "x"}},
        {"environment": {"API_KEY": "x"}},
    ],
)
def test_a_job_that_cannot_be_or_that_holds_a_secret_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(JOB, **wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4", 4),
        ("500m", 0.5),
        (".5", 0.5),
        ("2.", 2),
        ("16Gi", 16 * 2**30),
        ("1.5M", 1.5e6),
        ("2E", 2e18),
        ("3e9", 3e9),
        ("3E-2", 0.03),
    ],
)
def test_quantities_are_read_as_a_cluster_reads_them(text: str, says: float) -> None:
    assert _quantity(text, "memory", "16Gi") == pytest.approx(says)


def test_a_quantity_that_is_none_is_named() -> None:
    made = CliRunner().invoke(launch_command, ["kubernetes", "s3://b/a", "--image", "i", "--dry-run", "--memory", "lots"])
    assert isinstance(made.exception, ConfigError)
    assert "'lots' is not a quantity of memory: write such as 16Gi" in made.exception.message


# ---- Kubernetes


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("settings", [KubernetesSettings(), ON])
@pytest.mark.parametrize("gpus", [0, 2])
def test_a_kubernetes_job_is_valid(nodes: int, settings: KubernetesSettings, gpus: int) -> None:
    objects = kubernetes_job(replace(JOB, nodes=nodes, gpus=gpus), settings)
    assert [each["kind"] for each in objects] == (["Job"] if nodes == 1 else ["Service", "Job"])
    for each in yaml.safe_load_all(to_yaml(objects)):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    broken = {**objects[-1], "spec": {**objects[-1]["spec"], "completions": "two"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_pods_of_a_job_find_each_other() -> None:
    service, job = kubernetes_job(JOB, ON)
    pod = pod_of([job])
    variables = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    host, _, domain = str(variables["PET_MASTER_ADDR"]).partition(".")
    assert host == f"{job['metadata']['name']}-0"
    assert domain == service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["port"] == int(str(variables["PET_MASTER_PORT"]))
    assert int(str(variables["PET_NNODES"])) == job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert "PET_NODE_RANK" in variables


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("settings", [KubernetesSettings(), replace(ON, secret="")])
def test_a_train_job_is_valid(nodes: int, settings: KubernetesSettings) -> None:
    (made,) = train_job(replace(JOB, nodes=nodes), settings)
    parsed = TrainerV1alpha1TrainJob.from_dict(made)
    assert parsed is not None
    assert json.loads(parsed.to_json()) == made, "nothing of it is unknown to Kubeflow"
    assert (parsed.spec.trainer.num_nodes, parsed.spec.trainer.num_proc_per_node) == (nodes, 2)


def test_a_train_job_cannot_name_a_secret() -> None:
    with pytest.raises(ConfigError, match="secret"):
        train_job(JOB, ON)


def test_submission_goes_through_kubectl_and_says_what_failed(tmp_path: Path) -> None:
    """A fake kubectl receives the objects, and its output is returned."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\ncat > {tmp_path}/given; [ "$*" = "apply -f -" ] && echo created || exit 3\n')
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    objects = kubernetes_job(JOB, ON)
    assert apply(objects, str(kubectl)) == "created"
    assert list(yaml.safe_load_all((tmp_path / "given").read_text())) == objects
    kubectl.write_text("#!/bin/sh\ncat > /dev/null; echo forbidden >&2; exit 1\n")
    with pytest.raises(TransientError, match="forbidden"):
        apply(objects, str(kubectl))
    with pytest.raises(ConfigError, match="not installed"):
        apply(objects, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "platform"),
    [("train-job.yaml", ("kubernetes", "--secret", "riffle-train")), ("train-trainjob.yaml", ("kubeflow",))],
)
def test_the_templates_in_deploy_are_what_is_submitted(name: str, platform: tuple[str, ...]) -> None:
    asked = "s3://b/archive --image riffle-train:latest --name riffle-train --namespace learning --claim riffle"
    more = "--service-account riffle --nodes 2 --processes 2 --dry-run --ranker deepfm"
    made = CliRunner().invoke(launch_command, [*platform, *asked.split(), *more.split()])
    assert made.exit_code == 0, made.output
    assert list(yaml.safe_load_all((DEPLOY / name).read_text())) == list(yaml.safe_load_all(made.stdout))


def test_a_launch_whose_release_would_be_lost_says_so_and_a_tag_without_a_value_is_refused() -> None:
    bare = ["s3://b/archive", "--image", "i", "--dry-run"]
    assert "without --claim the release is lost" in CliRunner().invoke(launch_command, ["kubernetes", *bare]).stderr
    aws = ["sagemaker", *bare, "--role", "r", "--output", "s3://b/o", "--region", "eu-central-1"]
    refused = CliRunner().invoke(launch_command, [*aws, "--tag", "team"])
    assert refused.exit_code == 2
    assert "'team' is not NAME=VALUE" in refused.stderr


# ---- SageMaker


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        yield


def test_a_sagemaker_job_is_submitted_described_and_listed(aws: None) -> None:
    settings = replace(AWS, subnets=("subnet-1",), security_groups=("sg-1",), tags={"team": "learning"})
    arn = sagemaker.submit(JOB, settings)
    assert arn.endswith("training-job/riffle-train")
    found = sagemaker.describe("riffle-train")
    assert found["name"] == "riffle-train"
    assert found["checkpoints"] == "s3://bucket/out/checkpoints/riffle-train"
    sagemaker.submit(replace(JOB, name="other"), settings)
    assert [each["name"] for each in sagemaker.jobs("riffle")] == ["riffle-train"]
    assert len(sagemaker.jobs()) == 2
    raw = sagemaker._client("eu-central-1").describe_training_job(TrainingJobName="riffle-train")
    assert raw["EnableManagedSpotTraining"] is True
    assert raw["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert raw["StoppingCondition"]["MaxWaitTimeInSeconds"] >= raw["StoppingCondition"]["MaxRuntimeInSeconds"]
    with pytest.raises(ConfigError, match="refuses"):
        sagemaker.describe("none")


def test_what_boto3_would_send_is_of_its_shape() -> None:
    """boto3's description of the call accepts the request; a wrong field is detected."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert shape is not None
    for settings in (AWS, replace(AWS, spot=False), replace(AWS, instance="ml.p4d.24xlarge", tags={"a": "b"})):
        request = training_job(JOB, settings)
        assert not ParamValidator().validate(request, shape).has_errors()
    assert ParamValidator().validate({**request, "Spot": True}, shape).has_errors()


def test_machines_with_a_fast_network_use_it_and_spot_waits_long_enough() -> None:
    fast = replace(AWS, instance="ml.p4d.24xlarge")
    assert training_job(JOB, fast)["Environment"].items() >= EFA_ENVIRONMENT.items()
    assert "FI_PROVIDER" not in training_job(replace(JOB, nodes=1), fast)["Environment"]
    assert "FI_PROVIDER" not in training_job(JOB, AWS)["Environment"]
    assert "MaxWaitTimeInSeconds" not in training_job(JOB, replace(AWS, spot=False))["StoppingCondition"]
    with pytest.raises(ConfigError, match="wait"):
        training_job(JOB, replace(AWS, max_wait_seconds=10))
    for wrong in ({"role": "train"}, {"output": "/tmp"}, {"checkpoints": "x"}, {"subnets": ("subnet-1",)}):
        with pytest.raises(ConfigError):
            replace(AWS, **wrong)


def test_on_sagemaker_torchrun_hears_of_the_other_machines(tmp_path: Path) -> None:
    described = tmp_path / "resourceconfig.json"
    hosts = [f"algo-{n}" for n in range(1, 12)]
    described.write_text(json.dumps({"current_host": "algo-10", "hosts": hosts[::-1], "network_interface_name": "eth0"}))
    found = machines({}, described)
    assert (found["PET_NNODES"], found["PET_NODE_RANK"], found["PET_MASTER_ADDR"]) == ("11", "9", "algo-1")
    assert found["NCCL_SOCKET_IFNAME"] == "eth0"
    assert machines({"PET_NNODES": "2"}, described) == {}, "what the platform says goes first"
    assert machines({}, tmp_path / "none") == {}
    described.write_text("{}")
    with pytest.raises(ConfigError, match="machines"):
        machines({}, described)


# ---- the command


@pytest.mark.parametrize("platform", ["kubernetes", "kubeflow", "sagemaker"])
def test_a_dry_run_prints_and_submits_nothing(platform: str) -> None:
    options = ["s3://b/archive", "--image", "riffle-train", "--name", "once", "--nodes", "2", "--dry-run", "--positive", "True"]
    if platform == "sagemaker":
        options += ["--role", AWS.role, "--output", AWS.output]
    environment = {name: "" for name in os.environ if name.startswith("AWS_")}
    ran = CliRunner(env=environment).invoke(launch_command, [platform, *options])
    assert ran.exit_code == 0, ran.stdout
    (made, *_) = list(yaml.safe_load_all(ran.stdout))
    assert "once" in json.dumps(made)
    flat = json.dumps(list(yaml.safe_load_all(ran.stdout)))
    assert '"train", "s3://b/archive", "--out"' in flat
    assert '"--positive", "True"' in flat
