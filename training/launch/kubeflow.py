"""A training as a `TrainJob` of Kubeflow Trainer v2, on a torch runtime, which configures `torchrun` for the other nodes."""

from __future__ import annotations

from typing import Any

from schemas.errors import ConfigError
from training.launch.job import TrainingJob
from training.launch.kubernetes import LABEL, STANDARD, KubernetesSettings, pod_volumes, resources, variables

__all__ = ["train_job"]

RUNTIME = "torch-distributed"
NODE = "node"
"Name of the replicated job in the runtime, and of its container."


def train_job(job: TrainingJob, settings: KubernetesSettings = STANDARD, runtime: str = RUNTIME) -> list[dict[str, Any]]:
    """Make the object to create. The runtime derives PET_NNODES and similar variables from the numbers of nodes and processes.

    Raises:
        ConfigError: a secret is named; only the runtime itself can hold one.
    """
    if settings.secret:
        raise ConfigError("job_secret", "a TrainJob cannot name a secret: add it to the training runtime's container", "secret")
    trainer = {
        "image": job.image,
        "command": job.command,
        "numNodes": job.nodes,
        "numProcPerNode": job.processes,
        "resourcesPerNode": resources(job),
        "env": [{"name": "PET_MAX_RESTARTS", "value": str(job.restarts)}, *variables(job)],
    }
    volumes, mounts = pod_volumes(settings)
    node: dict[str, Any] = {"name": NODE, "volumeMounts": mounts}
    pod: dict[str, Any] = {"containers": [node], "volumes": volumes}
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    replicated = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    patch = {"manager": "riffle.dev/launch", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}}}
    return [
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": job.name, "namespace": settings.namespace, "labels": {LABEL: "riffle-train"}},
            "spec": {
                "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": runtime},
                "activeDeadlineSeconds": job.max_seconds,
                "trainer": trainer,
                "runtimePatches": [patch],
            },
        }
    ]
