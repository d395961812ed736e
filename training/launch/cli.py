"""The command `riffle launch`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from schemas.click_types import Whole
from training.launch import sagemaker
from training.launch.job import STATE, TrainingJob
from training.launch.kubeflow import RUNTIME, train_job
from training.launch.kubernetes import KubernetesSettings, apply, kubernetes_job, to_yaml

__all__ = ["launch_command"]

JOB = (
    click.option("--image", required=True, help="Container image with the training program."),
    click.option("--name", help="Name of the job; default: riffle-train and the time."),
    click.option("--nodes", default=1, show_default=True, type=Whole(1)),
    click.option("--processes", default=1, show_default=True, type=Whole(1), help="Processes per node."),
    click.option("--gpus", default=0, show_default=True, type=Whole(0), help="GPUs per node."),
    click.option("--cpus", default="4", show_default=True, help="CPUs per node."),
    click.option("--memory", default="16Gi", show_default=True, help="Memory per node."),
    click.option("--max-seconds", default=86_400, show_default=True, type=Whole(1), help="Maximum duration of the run."),
    click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="An environment variable; not for secrets."),
    click.option("--dry-run", is_flag=True, help="Print the job without submitting it."),
)
CLUSTER = (
    click.option("--namespace", default="default", show_default=True),
    click.option("--claim", default="", help=f"Volume claim for releases and checkpoints, mounted at {STATE}."),
    click.option("--service-account", default="", help="Account whose role may read the archive."),
)
PASSED_ON = {"ignore_unknown_options": True}


def _with(options: tuple[Callable[..., Any], ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def _kept(claim: str) -> None:
    if not claim:
        click.echo("without --claim the release is lost with the pod that made it", err=True)


def _job(source: str, options: tuple[str, ...], out: str, checkpoints: str, given: dict[str, Any]) -> TrainingJob:
    arguments = ("train", source, "--out", out, "--checkpoints", checkpoints, "--json", *options)
    return TrainingJob(
        name=given["name"] or f"riffle-train-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        image=given["image"],
        arguments=arguments,
        nodes=given["nodes"],
        processes=given["processes"],
        gpus=given["gpus"],
        cpus=given["cpus"],
        memory=given["memory"],
        max_seconds=given["max_seconds"],
        environment=_pairs("--env", given["environment"]),
    )


@click.group("launch")
def launch_command() -> None:
    """Train on a cluster: the same container command as a Kubernetes Job, a Kubeflow TrainJob or a SageMaker training job.

    Options after the source are passed to `train`, for example --positive RULE or --against s3://bucket/releases/NAME.

    Example: riffle launch kubernetes s3://bucket/archive --image riffle-train --dry-run
    """


@launch_command.command("kubernetes", context_settings=PASSED_ON)
@click.argument("source")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@_with((*JOB, *CLUSTER))
@click.option("--secret", default="", help="Secret of the cluster whose entries become environment variables.")
def kubernetes_command(
    source: str, options: tuple[str, ...], namespace: str, claim: str, service_account: str, secret: str, **given: Any
) -> None:
    """Run the training as a Kubernetes Job, through kubectl.

    Example: riffle launch kubernetes s3://bucket/archive --image riffle-train --nodes 2 --claim riffle --dry-run
    """
    _kept(claim)
    settings = KubernetesSettings(namespace, claim, secret, service_account)
    job = _job(source, options, f"{STATE}/releases", f"{STATE}/checkpoints", given)
    objects = kubernetes_job(job, settings)
    click.echo(to_yaml(objects) if given["dry_run"] else apply(objects))


@launch_command.command("kubeflow", context_settings=PASSED_ON)
@click.argument("source")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@_with((*JOB, *CLUSTER))
@click.option("--runtime", default=RUNTIME, show_default=True, help="Cluster training runtime.")
def kubeflow_command(
    source: str, options: tuple[str, ...], namespace: str, claim: str, service_account: str, runtime: str, **given: Any
) -> None:
    """Run the training as a TrainJob of Kubeflow Trainer v2, through kubectl.

    Example: riffle launch kubeflow s3://bucket/archive --image riffle-train --nodes 2 --claim riffle --dry-run
    """
    _kept(claim)
    settings = KubernetesSettings(namespace, claim, "", service_account)
    job = _job(source, options, f"{STATE}/releases", f"{STATE}/checkpoints", given)
    objects = train_job(job, settings, runtime)
    click.echo(to_yaml(objects) if given["dry_run"] else apply(objects))


@launch_command.command("sagemaker", context_settings=PASSED_ON)
@click.argument("source")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@_with(JOB)
@click.option("--role", required=True, help="ARN of the machines' role.")
@click.option("--output", required=True, help="s3://bucket/prefix for the release.")
@click.option("--checkpoint-uri", default="", help="s3://bucket/prefix for checkpoints; default: below the output.")
@click.option("--instance", default="ml.m5.2xlarge", show_default=True)
@click.option("--volume-gb", default=50, show_default=True, type=Whole(1))
@click.option("--spot/--no-spot", default=True, show_default=True)
@click.option(
    "--max-wait-seconds", default=0, type=Whole(0), help="Maximum duration of wait and run together; 0: twice that of the run."
)
@click.option("--subnet", "subnets", multiple=True)
@click.option("--security-group", "security_groups", multiple=True)
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE")
@click.option("--region", default="")
def sagemaker_command(source: str, options: tuple[str, ...], tags: tuple[str, ...], **given: Any) -> None:
    """Run the training as a SageMaker training job, with the credentials that boto3 finds.

    Example: riffle launch sagemaker s3://bucket/archive --image … --role arn:… --output s3://bucket/out --dry-run
    """
    settings = sagemaker.SageMakerSettings(
        role=given["role"],
        output=given["output"],
        checkpoints=given["checkpoint_uri"],
        instance=given["instance"],
        volume_gb=given["volume_gb"],
        spot=given["spot"],
        max_wait_seconds=given["max_wait_seconds"],
        subnets=given["subnets"],
        security_groups=given["security_groups"],
        tags=_pairs("--tag", tags),
        region=given["region"],
    )
    job = _job(source, options, sagemaker.MODEL, sagemaker.CHECKPOINTS, given)
    if given["dry_run"]:
        click.echo(json.dumps(sagemaker.training_job(job, settings), indent=1))
    else:
        click.echo(sagemaker.submit(job, settings))


@launch_command.command("status")
@click.argument("name", required=False)
@click.option("--region", default="")
def status_command(name: str | None, region: str) -> None:
    """Show the status of a SageMaker training job, or list the newest ones.

    Example: riffle launch status riffle-train-20260131-120000
    """
    click.echo(json.dumps(sagemaker.describe(name, region) if name else sagemaker.jobs("riffle", region), indent=1))
