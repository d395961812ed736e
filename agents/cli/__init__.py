"""The command line. Commands load when they are called, so that `riffle --help` is instant."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import click

from agents.cli.interrupts import Interrupted, reporting_interrupts
from schemas.errors import RiffleError
from schemas.masking import masked

__all__ = ["COMMANDS", "group", "guarded", "main"]

LIBRARIES = ("aiokafka", "asyncio", "botocore", "urllib3")
NOT_WRITTEN = {errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT}
"Errors of writing to an open file, which name no file."
READER_GONE = 141
"Exit status of a command whose reader has closed the pipe, the same as after SIGPIPE."
COMMANDS = {
    "up": ("agents.cli.operate", "up", "Start the embedded Kafka and Redis, and one worker or several."),
    "down": ("agents.cli.operate", "down", "Stop what `up` started."),
    "status": ("agents.cli.operate", "status", "Print addresses, readiness, and each process with its partitions."),
    "top": ("agents.cli.top", "top", "Watch a worker: rates, latency, stages, partitions, the newest requests."),
    "doctor": ("agents.cli.doctor", "doctor", "Check for problems and print how to fix them."),
    "size": ("agents.cli.size", "size", "Forecast how large a deployment must be for a load, and what limits it."),
    "worker": ("agents.cli.operate", "worker", "Run one worker in the foreground."),
    "token": ("agents.cli.token", "token", "Make a token for the HTTP interface."),
    "topics": (
        "agents.cli.topics",
        "topics",
        "List the topics, create what is missing, copy them to more partitions, or print the rights that they need.",
    ),
    "load": ("agents.cli.loading", "load", "Validate a dataset folder and produce its items and events."),
    "replay": ("agents.cli.loading", "replay", "Produce a dataset folder's events at a rate."),
    "dlq": ("agents.cli.dlq", "dlq", "List records that could not be used, and produce them again."),
    "tables": ("agents.cli.tables", "tables", "Show table partitions, and compare them with their changelogs."),
    "ask": ("agents.cli.ask", "ask", "Ask for a slate."),
    "recommend": ("agents.cli.recommend", "recommend", "Write the slates of many users to a file."),
    "rules": ("agents.cli.rules", "rules", "Check, preview, publish, show or remove merchandising rules."),
    "train": ("agents.cli.release", "train", "Train a release from the archive or a dataset folder, and judge it."),
    "encode": ("agents.cli.encode", "encode", "Encode texts and images of items as they arrive."),
    "release": ("agents.cli.release", "release", "List releases, promote one, or roll back to the previous one."),
    "evaluate": (
        "training.cli.evaluate",
        "evaluate_command",
        "Train on the first part of a dataset folder, and measure on the rest.",
    ),
    "report": ("training.cli.report", "report_command", "Compare saved measurements on one HTML page."),
    "examples": (
        "training.cli.examples",
        "examples_command",
        "Join an archive's slates with the events that followed, once for all training runs.",
    ),
    "tune": ("training.cli.tune", "tune_command", "Search for better training settings."),
    "launch": ("training.launch.cli", "launch_command", "Train on Kubernetes, Kubeflow or SageMaker."),
    "demo": ("agents.cli.demo", "demo", "Start everything, load a dataset, and show an event change a slate."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riffle", message="riffle %(version)s")
@click.option("--debug", is_flag=True, help="Show stack traces and the logs of libraries.")
def group(debug: bool) -> None:
    """Riffle: a real-time recommender on an event stream.

    Example: riffle up && riffle load my-dataset && riffle ask some-user
    """
    if debug:
        logging.basicConfig(level=logging.DEBUG)
    for name in LIBRARIES:
        # the command reports errors itself; `worker` and `encode` log to handlers of their own
        logging.getLogger(name).addHandler(logging.NullHandler())


def main() -> None:
    """Entry point."""
    guarded(group)


def guarded(command: click.Command, name: str | None = None, *, child: bool = False) -> NoReturn:
    """Run a command, called `name` in its usage. Errors with a message for users are shown as that message.

    With `--json` the last line of the output is then `{"error": {"code", "message", "field"}}`. Characters that the terminal's
    encoding lacks are replaced. Output that cannot be written is an error, unless its reader has closed the pipe. Ctrl-C ends
    the command with one line on what is left and how to go on; `child`: another command, which started this process, prints it.
    """
    _open_streams()
    status = _status_of(reporting_interrupts(command, name, silently=child), name)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`
        status = status or READER_GONE
        _forget_output()
    except OSError as exc:
        if not status:
            click.echo(f"riffle: the output cannot be written: {exc.strerror}", err=True)
        status = status or 1
        _forget_output()
    sys.exit(status)


def _open_streams() -> None:
    """Replace characters that the encoding lacks. A closed stdout becomes a file that cannot be written."""
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _forget_output() -> None:
    """Drop the buffered output, so that the interpreter does not retry at exit and print a trace."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _status_of(command: click.Command, name: str | None) -> int | str | None:
    """Run the command and show its error, if any; returns the exit status."""
    try:
        command.main(prog_name=name)
    except SystemExit as exc:
        if isinstance(wrong := exc.__context__, click.ClickException):
            code = "interrupted" if isinstance(wrong, Interrupted) else "usage"
            _tell({"code": code, "message": masked(wrong.format_message()), "field": None})
        return exc.code
    except Exception as exc:
        message = _message(exc)
        if message is None or "--debug" in sys.argv[1:2]:
            raise
        click.echo(f"riffle: {masked(message)}", err=True)
        with contextlib.suppress(OSError):
            _tell(
                exc.to_json() if isinstance(exc, RiffleError) else {"code": "failed", "message": masked(message), "field": None}
            )
    return 1


def _tell(error: Mapping[str, str | None]) -> None:
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": error}))


def _message(exc: Exception) -> str | None:
    """The message of an error for users; None when only its stack trace helps."""
    if isinstance(exc, RiffleError):
        return exc.message
    if "aiokafka" in sys.modules:  # a library that is not imported raised nothing, and importing it takes a while
        from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, NodeNotReadyError

        from schemas.settings import Settings

        there = Settings.from_env().bootstrap_servers
        if isinstance(exc, KafkaConnectionError | KafkaTimeoutError | NodeNotReadyError | ConnectionError):
            return f"no Kafka answers at {there}: run `riffle up`, or see `riffle doctor`"
        if isinstance(exc, KafkaError):
            return f"Kafka at {there} refused: {exc!r}; see `riffle doctor`"
    if isinstance(exc, OSError) and exc.strerror is not None and (exc.filename is not None or exc.errno in NOT_WRITTEN):
        return f"{exc.filename}: {exc.strerror}" if exc.filename is not None else f"cannot write: {exc.strerror}"
    return None
