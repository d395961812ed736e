"""Ctrl-C in commands: what was interrupted, which state is left, and how to go on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click

__all__ = ["INTERRUPTED", "LEFT", "Interrupted", "called", "reporting_interrupts"]

INTERRUPTED = 130
"Exit status of a command that Ctrl-C ended, as a shell sets it."
NOTHING = "it only reads: nothing has changed"
LEFT: Mapping[str, str] = {
    "up": "parts that were started go on running: `riffle status` lists them, `riffle up` goes on, `riffle down` stops them",
    "down": "some parts may still run, and nothing on disk is lost: `riffle down` again stops the rest",
    "status": NOTHING,
    "top": NOTHING,
    "doctor": NOTHING,
    "size": NOTHING,
    "worker": "what it had not committed is applied again by the next worker that starts",
    "token": "a token that was not printed is lost: make another one",
    "topics": (
        "`list` and `acls` change nothing, and `create` may be repeated. `copy` leaves what it has copied: delete the topics of"
        " the new prefix, and copy again"
    ),
    "load": "some items and events may have been sent. Run it again to send all: an event that repeats does not count twice",
    "replay": "some events may have been sent. Run it again to send all: an event that repeats does not count twice",
    "dlq list": NOTHING,
    "dlq show": NOTHING,
    "dlq replay": "some letters may have been sent again. Run it again to send all: none of them counts twice",
    "tables": NOTHING,
    "ask": "the slate may have been made, and is logged as shown; ask again",
    "recommend": "the file was not written, and an earlier one of that name is kept; run it again",
    "rules check": NOTHING,
    "rules clear": "the rules are removed, or still serve: `riffle rules show` shows which; the command may be repeated",
    "rules preview": NOTHING,
    "rules put": "the new rules serve, or the old ones do: `riffle rules show` shows which; the command may be repeated",
    "rules show": NOTHING,
    "train": (
        "`riffle release list` shows the release if it was complete. Encoded texts and images are kept, which shortens the next"
        " training; with --checkpoints it goes on where this one stopped"
    ),
    "encode": "vectors that were published are kept; run it again for the rest",
    "release alias": "the alias is set, or is not: `riffle release list` shows which; the command may be repeated",
    "release import": "no part of a release is left; run it again",
    "release list": NOTHING,
    "release promote": (
        "it is announced, or the earlier one still is: `riffle release list` shows which; the command may be repeated"
    ),
    "release rollback": (
        "it is done, or is not: see `riffle release list` before you repeat it, because a second rollback goes forward again"
    ),
    "evaluate": (
        "no figures were written. Encoded texts and images are kept, which shortens the next run; with --checkpoints it goes on"
        " where this one stopped"
    ),
    "report": "the page may be incomplete; run it again",
    "examples": "files of partitions that were complete are kept; run it again to write all",
    "tune": "completed trials are kept: run it again with the same study to go on",
    "launch kubeflow": "the job may have been submitted: `kubectl get trainjobs` shows it",
    "launch kubernetes": "the job may have been submitted: `kubectl get jobs` shows it",
    "launch sagemaker": "the job may have been submitted: `riffle launch status` shows it",
    "launch status": NOTHING,
    "demo": (
        "what was started goes on running, and what was loaded is kept: `riffle status` lists it, `riffle demo` begins again"
        " without counting anything twice, `riffle down` stops it"
    ),
}
"What is left by each command, and how to go on. Commands that can report more do so themselves."


class Interrupted(click.ClickException):
    """Ends a command, after one line, with `INTERRUPTED`."""

    exit_code = INTERRUPTED

    def __init__(self, name: str) -> None:
        left = LEFT.get(name, "")
        what = f"`riffle {name}`" if name else "riffle"
        super().__init__(f"{what} was interrupted{f': {left}' if left else ''}")

    def show(self, file: object = None) -> None:  # noqa: ARG002
        """Print the line on stderr."""
        # on a line of its own, because a terminal shows ^C
        click.echo(f"{chr(10) * sys.stderr.isatty()}riffle: {self.message}", err=True)


def called(command: click.Command, arguments: Sequence[str]) -> str:
    """Return the name of the command that the arguments call, such as `rules put`; as far as it is known."""
    found: list[str] = []
    for argument in arguments:
        if not isinstance(command, click.Group):
            break
        inner = command.get_command(click.Context(command), argument)
        if inner is not None:
            found.append(argument)
            command = inner
    return " ".join(found)


def reporting_interrupts(command: click.Command, name: str | None, *, silently: bool) -> click.Command:
    """Let a command end with `Interrupted` at Ctrl-C, wherever it is at that moment; returns it.

    `name`: its name, such as `riffle train`, if it is not the group of all commands. `silently`: without the line, because the
    process that started this one prints it.
    """
    plain = command.invoke

    def invoke(ctx: click.Context) -> object:
        try:
            return plain(ctx)
        except KeyboardInterrupt as exc:
            if silently:
                sys.exit(INTERRUPTED)
            which = called(command, sys.argv[1:]) if name is None else name.removeprefix("riffle ")
            raise Interrupted(which) from exc

    command.invoke = invoke  # type: ignore[method-assign]
    return command
