"""`python -m training …`: the same command on a laptop, under `torchrun`, in a Kubernetes Job, in a SageMaker training job."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import click

from schemas.errors import RiffleError
from training.cli.evaluate import evaluate_command
from training.cli.examples import examples_command
from training.cli.report import report_command
from training.cli.train import train_command
from training.cli.tune import tune_command
from training.environment import Launch
from training.loop.alone import NotFirst

__all__ = ["main"]


def _joined() -> AbstractContextManager[object]:
    if Launch.from_env().processes < 2:
        return nullcontext()
    from training.loop.group import joined  # it imports torch

    return joined()


def main() -> None:
    """Run a training command."""
    group = click.Group(
        "training",
        commands={
            "train": train_command,
            "evaluate": evaluate_command,
            "report": report_command,
            "tune": tune_command,
            "examples": examples_command,
        },
    )
    try:
        with _joined():
            group(prog_name="python -m training")
    except NotFirst:  # the first process of the group does the remaining work
        sys.exit(0)
    except RiffleError as exc:
        click.echo(f"riffle: {exc.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
