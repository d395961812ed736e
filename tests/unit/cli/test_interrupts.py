"""Ctrl-C in a command: one line on what was interrupted, what is left and how to go on, for every command in the same place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import pytest
from interrupting import INTERRUPTIBLE

from agents.cli import group, guarded
from agents.cli.interrupts import INTERRUPTED, LEFT, called
from schemas.settings import Settings
from streams.embedded.process import riffle


def leaves(command: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        if isinstance(inner, click.Group):
            yield from leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def test_every_command_says_what_an_interrupt_leaves_and_no_other_does() -> None:
    assert {" ".join(path) for path, _ in leaves(group)} == set(LEFT)
    for text in LEFT.values():
        assert not text.endswith(".")


def test_an_interrupt_at_any_moment_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    for path, _ in leaves(group):
        # of a nested group its own, because a group that is parsed keeps the names of the option for help
        command = group.get_command(click.Context(group), path[0])
        with monkeypatch.context() as patch:
            patch.setattr(command, "make_context", interrupt)
            patch.setattr(sys, "argv", ["riffle", *path, "--json"])
            patch.setattr(group, "invoke", group.invoke)
            with pytest.raises(SystemExit) as ended:
                guarded(group)
        name = " ".join(path)
        said = capsys.readouterr()
        assert ended.value.code == INTERRUPTED
        assert said.err.splitlines() == [f"riffle: `riffle {name}` was interrupted: {LEFT[name]}"]
        error = json.loads(said.out)["error"]
        assert (error["code"], error["message"]) == ("interrupted", said.err.strip().removeprefix("riffle: "))


def test_which_command_is_called_is_known_from_its_words() -> None:
    assert called(group, ["--debug", "rules", "put", "show"]) == "rules put"
    assert called(group, ["ask", "rules", "-k", "5"]) == "ask"
    assert called(group, ["--help"]) == called(group, []) == ""


@pytest.mark.parametrize("child", [False, True])
def test_a_process_that_is_interrupted_ends_with_one_line_or_leaves_it_to_its_parent(tmp_path: Path, child: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        settings = Settings(home=tmp_path, bootstrap=f"127.0.0.1:{silent.getsockname()[1]}")
        program = riffle("ask", "ann")
        if child:
            program[3] = "from agents.cli import group, guarded; guarded(group, child=True)"
        environment = {**os.environ, **settings.environment()}
        process = subprocess.Popen(
            [*INTERRUPTIBLE, *program], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        connection.close()
    assert process.returncode == INTERRUPTED
    assert out == ""
    assert err.splitlines() == ([] if child else [f"riffle: `riffle ask` was interrupted: {LEFT['ask']}"])
