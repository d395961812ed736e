"""The page of commands in the documentation.

`python -m agents.cli.commands_page > docs/commands.md` writes it from the code.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from agents.cli import COMMANDS, group

__all__ = ["page"]

INTRODUCTION = """# Commands

<!-- Written by `python -m agents.cli.commands_page > docs/commands.md`; a test fails when it is not current. -->

`riffle COMMAND --help` prints the same. Commands end with 0 if they did what was asked, 1 with a message on standard error if
not, and 2 for a wrong call. With `--json` standard output holds JSON alone. What takes longer shows its progress on standard
error, unless that is no terminal.
"""


def page() -> str:
    """Return the page as Markdown."""
    return INTRODUCTION + "".join(_described())


def _described() -> Iterator[str]:
    context = click.Context(group, info_name="riffle")
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        yield from _command(command, click.Context(command, info_name=name, parent=context), 2)


def _command(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    yield f"\n{'#' * depth} {context.command_path}\n\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```\n{context.command_path} {usage}\n```\n\n"
    text = inspect.cleandoc(command.help or command.short_help or "").partition("\f")[0]
    yield _paragraphs(text) + "\n"
    options = [record for option in command.get_params(context) if (record := option.get_help_record(context)) is not None]
    options = [record for record in options if not record[0].endswith("--help")]  # or "-h, --help", once it was called
    if options:
        yield "\n| option | |\n|---|---|\n"
        yield from (
            f"| `{name}` | {' '.join(text.split())} |\n".replace("||", "\\|\\|") for name, text in map(_escaped, options)
        )
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _command(inner, click.Context(inner, info_name=name, parent=context), depth + 1)


def _escaped(record: tuple[str, str]) -> tuple[str, str]:
    name, text = record
    return name.replace("|", "\\|"), text.replace("|", "\\|")


def _paragraphs(text: str) -> str:
    """Return help as Markdown: paragraphs after click's mark for unwrapped lines are code."""
    parts = []
    for part in text.split("\n\n"):
        code = part.startswith("\b\n")
        parts.append(f"```\n{part.removeprefix(chr(8)).strip()}\n```" if code else part)
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
