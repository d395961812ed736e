"""A training as a SageMaker training job: spot machines, checkpoints in S3, a fast network on machines that have one.

Credentials come from the environment or the machine's role, as boto3 finds them; a job contains none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigError, TransientError
from training.launch.job import TrainingJob

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

__all__ = ["CHECKPOINTS", "MODEL", "SageMakerSettings", "describe", "jobs", "submit", "training_job"]

MODEL = "/opt/ml/model"
"Files here at the end are stored below the output: the release's folder."
CHECKPOINTS = "/opt/ml/checkpoints"
"Files here are copied to S3 while the job runs, and restored when it restarts."
EFA = ("ml.p4d.", "ml.p4de.", "ml.p5.", "ml.p5e.", "ml.p5en.", "ml.p6-", "ml.trn1.32", "ml.trn1n.", "ml.trn2.")
"Prefixes of the machine types that have an Elastic Fabric Adapter."
EFA_ENVIRONMENT = {
    "FI_PROVIDER": "efa",
    "FI_EFA_USE_DEVICE_RDMA": "1",
    "FI_EFA_FORK_SAFE": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}


@dataclass(frozen=True, slots=True)
class SageMakerSettings:
    """SageMaker settings of a job."""

    role: str
    "ARN of the machines' role; it must be able to read the archive and write the output."
    output: str
    "Destination of the release, s3://bucket/prefix."
    checkpoints: str = ""
    "Destination of checkpoints, s3://bucket/prefix; empty means below the output."
    instance: str = "ml.m5.2xlarge"
    volume_gb: int = 50
    spot: bool = True
    max_wait_seconds: int = 0
    "Longest time of waiting for spot machines and training, together, s; 0 means twice the job's longest run."
    subnets: Sequence[str] = ()
    security_groups: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    region: str = ""

    def __post_init__(self) -> None:
        for name, uri in (("output", self.output), ("checkpoints", self.checkpoints)):
            if not uri.startswith("s3://") and (uri or name == "output"):
                raise ConfigError("sagemaker", f"{name} must be s3://bucket/prefix, not {uri[:80]!r}", name)
        if not self.role.startswith("arn:"):
            raise ConfigError("sagemaker", "a role's ARN is needed: arn:aws:iam::…:role/…", "role")
        if bool(self.subnets) != bool(self.security_groups):
            raise ConfigError("sagemaker", "a VPC needs both subnets and security groups", "subnets")


def training_job(job: TrainingJob, settings: SageMakerSettings) -> dict[str, Any]:
    """Make the request for `create_training_job`.

    Raises:
        ConfigError: the longest wait is shorter than the longest run.
    """
    stopping: dict[str, int] = {"MaxRuntimeInSeconds": job.max_seconds}
    if settings.spot:
        stopping["MaxWaitTimeInSeconds"] = settings.max_wait_seconds or 2 * job.max_seconds
        if stopping["MaxWaitTimeInSeconds"] < job.max_seconds:
            raise ConfigError("sagemaker", "the longest wait must not be shorter than the longest run", "max_wait_seconds")
    environment = {"PET_NPROC_PER_NODE": str(job.processes), "PET_MAX_RESTARTS": str(job.restarts), **job.environment}
    if job.nodes > 1 and settings.instance.startswith(EFA):
        environment |= EFA_ENVIRONMENT
    request: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": settings.role,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": job.command[:3],
            "ContainerArguments": job.command[3:],
        },
        "OutputDataConfig": {"S3OutputPath": settings.output},
        "ResourceConfig": {
            "InstanceType": settings.instance,
            "InstanceCount": job.nodes,
            "VolumeSizeInGB": settings.volume_gb,
        },
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": settings.spot,
        "CheckpointConfig": {
            "S3Uri": settings.checkpoints or f"{settings.output.rstrip('/')}/checkpoints/{job.name}",
            "LocalPath": CHECKPOINTS,
        },
        "Environment": environment,
        # after a machine is reclaimed or fails, SageMaker restarts the job, which continues from its checkpoint
        "RetryStrategy": {"MaximumRetryAttempts": max(1, min(job.restarts, 30))},
        "Tags": [{"Key": key, "Value": value} for key, value in sorted({"app": "riffle", **settings.tags}.items())],
    }
    if settings.subnets:
        request["VpcConfig"] = {"SecurityGroupIds": list(settings.security_groups), "Subnets": list(settings.subnets)}
    return request


def _client(region: str) -> SageMakerClient:
    import boto3

    return boto3.client("sagemaker", region_name=region or None)


def _asked(call: str, ask: Any, **request: Any) -> dict[str, Any]:
    """Call AWS and return its response."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return dict(ask(**request))
    except ClientError as exc:
        error = exc.response.get("Error", {})
        message = f"SageMaker refuses {call}: {error.get('Message', exc)}"
        raise ConfigError("sagemaker", message) from exc
    except BotoCoreError as exc:
        raise TransientError("sagemaker", f"SageMaker cannot be reached ({call}): {exc}") from exc


def submit(job: TrainingJob, settings: SageMakerSettings) -> str:
    """Start the job; returns its ARN.

    Raises:
        ConfigError: the job is invalid, or AWS rejects it.
        TransientError: AWS cannot be reached, or there are no credentials.
    """
    client = _client_or_error(settings.region)
    return str(_asked("create_training_job", client.create_training_job, **training_job(job, settings))["TrainingJobArn"])


def _client_or_error(region: str) -> SageMakerClient:
    from botocore.exceptions import BotoCoreError

    try:
        return _client(region)
    except BotoCoreError as exc:
        raise ConfigError("sagemaker", f"AWS is not set up here: {exc}") from exc


def describe(name: str, region: str = "") -> dict[str, Any]:
    """Status of a job: its name, status, failure reason, and the location of its release.

    Raises:
        ConfigError: there is no job of that name.
        TransientError: AWS cannot be reached, or there are no credentials.
    """
    found = _asked("describe_training_job", _client_or_error(region).describe_training_job, TrainingJobName=name)
    return {
        "name": found["TrainingJobName"],
        "status": found["TrainingJobStatus"],
        "detail": found.get("SecondaryStatus", ""),
        "failure": found.get("FailureReason", ""),
        "release": found.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
        "checkpoints": found.get("CheckpointConfig", {}).get("S3Uri", ""),
    }


def jobs(prefix: str = "", region: str = "", most: int = 50) -> list[dict[str, str]]:
    """The newest jobs whose name contains `prefix`: name, status, and creation time.

    Raises:
        ConfigError: AWS rejects the request.
        TransientError: AWS cannot be reached, or there are no credentials.
    """
    request: dict[str, Any] = {"MaxResults": most, "SortBy": "CreationTime", "SortOrder": "Descending"}
    if prefix:
        request["NameContains"] = prefix
    found = _asked("list_training_jobs", _client_or_error(region).list_training_jobs, **request)
    return [
        {"name": each["TrainingJobName"], "status": each["TrainingJobStatus"], "created": each["CreationTime"].isoformat()}
        for each in found["TrainingJobSummaries"]
    ]
