"""`python -m training …`: the same command on a laptop, under `torchrun`, in a Kubernetes Job, in a SageMaker training job."""

from __future__ import annotations

import sys

import click

from schemas.errors import RiffleError
from training.cli import evaluate_command, report_command, train_command
from training.commands import tune_command
from training.distributed import NotFirst, joined
from training.examples import examples_command

__all__ = ["main"]


def main() -> None:
    """Run a command of training."""
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
        with joined():
            group(prog_name="python -m training")
    except NotFirst:  # the first process of the group does the rest
        sys.exit(0)
    except RiffleError as exc:
        click.echo(f"riffle: {exc.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
